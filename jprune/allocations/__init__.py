"""Allocations decide how many units each pool keeps.

A pool is a set of units that are ranked together: a leaf, or a part of one.
"""

from jprune.allocations._base import Allocation as Allocation
from jprune.allocations._base import Pools as Pools
from jprune.allocations._erdos_renyi import erdos_renyi as erdos_renyi
from jprune.allocations._fitted import fitted as fitted
from jprune.allocations._given import given as given
from jprune.allocations._global_ranking import global_ranking as global_ranking
from jprune.allocations._uniform import uniform as uniform

__all__ = [
    "Allocation",
    "Pools",
    "erdos_renyi",
    "fitted",
    "given",
    "global_ranking",
    "uniform",
]
