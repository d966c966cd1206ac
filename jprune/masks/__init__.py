"""Masks: bool trees beside the parameters, True = kept."""

from jprune.masks.align import align_masks as align_masks
from jprune.masks.align import full_masks as full_masks
from jprune.masks.apply import apply_masks as apply_masks
from jprune.masks.measure import measure_sparsity as measure_sparsity
from jprune.masks.measure import read_masks as read_masks
from jprune.masks.states import get_masks as get_masks
from jprune.masks.states import has_masks as has_masks
from jprune.masks.summary import LeafSummary as LeafSummary
from jprune.masks.summary import Summary as Summary
from jprune.masks.summary import summarize as summarize

__all__ = [
    "LeafSummary",
    "Summary",
    "align_masks",
    "apply_masks",
    "full_masks",
    "get_masks",
    "has_masks",
    "measure_sparsity",
    "read_masks",
    "summarize",
]
