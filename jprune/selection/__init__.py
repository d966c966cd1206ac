"""Which units stay: exact selection of the k best, by counting.

Floats order like their bit patterns, so the k-th largest score is found by
bracketing it: count the scores at or under a few keys, keep the keys next to
the wanted count, go on. A small sorted sample says where to begin; where all
units are few, they are sorted themselves. On a mesh only counts travel.
"""

from jprune.selection.top_k import top_k_mask as top_k_mask

__all__ = ["top_k_mask"]
