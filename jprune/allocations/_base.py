"""What an allocation is, and what it allocates."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jprune._core.calls import show
from jprune._core.typing import Tree


class Pools(NamedTuple):
    """The pools of each leaf: how many, and how large; no values of weights."""

    numbers: np.ndarray  # int64, pools of each leaf
    sizes: np.ndarray  # int64, units in each of them
    # Of parameters, without batch axes; None where pools are not of leaves.
    shapes: list[tuple[int, ...]] | None
    # As in Structure: how many units every pool keeps, where all of a leaf must
    # keep the same.
    kept: Callable[[Any, np.ndarray], Any] | None
    # For each leaf what its pools may be called: its path, or the axes of units.
    names: tuple[tuple[str, ...], ...] = ()


Pools.__module__ = "jprune.allocations"  # where users find it


class Allocation(NamedTuple):
    """Decides how the kept units are divided among pools.

    ``counts`` returns how many units the pools of each leaf keep: a sequence with
    an integer, or an integer array ``[pools]``, for each leaf. If ``joint``, it
    returns a single integer, the number for all leaves together.
    """

    counts: Callable[[Pools, Any], Any]  # pools, sparsity -> counts kept
    # Scores of units -> comparable ones; None: as they are.
    normalize: Callable[[Tree], Tree] | None = None
    joint: bool = False  # whether all units are in one ranking
    # pools, sparsity -> those of the pools of each leaf, if they are others.
    sparsities: Callable[[Pools, Any], list[Any]] | None = None
    # Where joint: int64 sizes of pools -> units that each keeps in any case.
    least: Callable[[np.ndarray], np.ndarray] | None = None

    most: float | None = None  # the largest sparsity that it knows counts for

    def __repr__(self) -> str:
        return show(self)


Allocation.__module__ = "jprune.allocations"  # where users find it
