"""Projections and proximal maps of whole trees, ``tree -> tree``.

A projection maps a tree to the nearest point of a set. A threshold is the proximal
map of a penalty: it maps a tree to the point that minimises the penalty plus half
the squared distance. Applied again, a threshold moves the tree further.
"""

from jprune.projections._frobenius_ball import frobenius_ball as frobenius_ball
from jprune.projections._l0_ball import l0_ball as l0_ball
from jprune.projections._singular_values import nuclear as nuclear
from jprune.projections._singular_values import spectral_ball as spectral_ball
from jprune.projections._soft_threshold import (
    group_soft_threshold as group_soft_threshold,
)
from jprune.projections._soft_threshold import soft_threshold as soft_threshold

__all__ = [
    "frobenius_ball",
    "group_soft_threshold",
    "l0_ball",
    "nuclear",
    "soft_threshold",
    "spectral_ball",
]
