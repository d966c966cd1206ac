"""Selects exactly the k best units, by counting instead of sorting.

Floats are ordered like their bit patterns, so the k-th largest score can be
bracketed: count the scores at or below a few keys, keep the two keys next to the
wanted count, and repeat. A small sorted sample gives the first keys; a small number
of units is sorted itself. On a mesh, devices exchange only counts.
"""

from jprune.selection.top_k import top_k_mask as top_k_mask

__all__ = ["top_k_mask"]
