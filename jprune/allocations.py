"""Allocations: how much where. How many units each pool keeps."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jprune import _counts
from jprune._typing import Tree

__all__ = ["Allocation", "global_ranking", "uniform"]


class Allocation(NamedTuple):
    """How the units that stay are divided among pools.

    ``counts`` returns a tree like ``units`` with the number that each pool keeps
    (an integer, or an integer array ``[pools]``, for each leaf); where ``joint``,
    one integer for all.
    """

    counts: Callable[[Tree, Any], Any]  # units, sparsity -> counts kept
    normalize: Callable[[Tree], Tree] = lambda units: units  # comparable scores
    joint: bool = False  # whether all units are in one ranking


def _kept(sizes: np.ndarray, sparsity: Any) -> Any:
    """What is left of each size: the rounding is that of the units lost."""
    lost = _counts.fraction_of(sparsity, sizes)
    if isinstance(lost, _counts.Count):
        return _counts.subtract(_counts.count_of(sizes), lost)
    return sizes - lost


def uniform() -> Allocation:
    """The same sparsity in every pool, each rounded by itself.

    Returns:
      An :class:`Allocation`.

    >>> import jax.numpy as jnp, jprune
    >>> params = {"a": jnp.array([[1., 2.]]), "b": jnp.array([[30., 40.]])}
    >>> jprune.find_masks(params, .5, allocation=jprune.allocations.uniform())
    {'a': Array([[False,  True]], dtype=bool), 'b': Array([[False,  True]], dtype=bool)}
    """

    def counts(units: Tree, sparsity: Any) -> Any:
        leaves, structure = jax.tree.flatten(units)
        sizes = [np.prod(x.shape[1:], dtype=np.int64) for x in leaves]
        kept = _kept(np.array(sizes, np.int64), sparsity)
        if isinstance(kept, _counts.Count):
            kept = _counts.to_int32(kept)
        return jax.tree.unflatten(structure, list(kept))

    return Allocation(counts)


def global_ranking() -> Allocation:
    """One ranking of all units: leaves that matter less lose more.

    Returns:
      An :class:`Allocation`; the total is exact, a leaf may be lost whole.

    >>> import jax.numpy as jnp, jprune
    >>> params = {"a": jnp.array([[1., 2.]]), "b": jnp.array([[30., 40.]])}
    >>> jprune.find_masks(
    ...     params, .5, allocation=jprune.allocations.global_ranking())
    {'a': Array([[False, False]], dtype=bool), 'b': Array([[ True,  True]], dtype=bool)}
    """

    def counts(units: Tree, sparsity: Any) -> Any:
        size = sum(
            np.prod(x.shape, dtype=np.int64) for x in jax.tree.leaves(units)
        )
        return _kept(np.array(size, np.int64), sparsity)

    return Allocation(counts, joint=True)
