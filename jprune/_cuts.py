"""What exact selection does to one leaf: count under cuts, write the mask.

A *cut* divides the units of a pool in the order of the selection: under it lie
all scores at or under ``low``, and of those at or under ``high`` the ones whose
flat index is not before ``bound``. Cuts come as rows of bits, ``[2 * cuts + 2,
pools]`` unsigned: ``low`` and ``bound`` of each, then for all one ``high``, and
whether the kept are all kept and the choice is among the others.

Everything here is jitted, so that it is traced once for all leaves of one
shape; what it compiles to is a single read of the leaf, without copies.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jprune._keys import float_of, keys_of

EVERY = 2**31 - 1
"""The bound before which all flat indices lie."""


class Leaf(NamedTuple):
    """One leaf of units, and which of them were kept."""

    scores: jax.Array  # [pools, ...] floating
    kept: jax.Array | None  # [pools, ...] bool; None: the choice is among all


@jax.jit
def count_under(leaf: Leaf, cuts: jax.Array) -> list[jax.Array]:
    """The candidates under each cut, ``[pools]``."""
    # Behind a barrier, that nothing is made outside of a loop and kept.
    leaf, cuts = lax.optimization_barrier((leaf, cuts))
    under = _under(leaf, cuts[:-1])
    return _count([_candidates(leaf, cuts[-1], x) for x in under])


@jax.jit
def count_at_most(leaf: Leaf, cuts: jax.Array) -> list[jax.Array]:
    """The same, in less time, for cuts that divide no equals."""
    if leaf.kept is not None or leaf.scores.itemsize != cuts.itemsize:
        # Without the barrier the compiler prepares the scores once, outside
        # the loop, and keeps them: a copy of the scores, and no faster.
        leaf, cuts = lax.optimization_barrier((leaf, cuts))
    flags = [_at_most(leaf, low) for low in float_of(cuts[:-2:2])]
    return _count([_candidates(leaf, cuts[-1], x) for x in flags])


@jax.jit
def mark(leaf: Leaf, cut: jax.Array) -> jax.Array:
    """What was kept and is no candidate, and what is not under the cut."""
    (under,) = _under(leaf, cut[:-1])
    if leaf.kept is None:
        return ~under
    here = _candidates(leaf, cut[-1], True)
    return lax.select(here, ~under, leaf.kept)


@jax.jit
def count_true(flags: jax.Array) -> list[jax.Array]:
    """``[pools]``: how many are True, int32."""
    return _count([flags])


@jax.jit
def count_candidates(leaf: Leaf, grow: jax.Array) -> list[jax.Array]:
    """``[pools]``: between how many is chosen, int32."""
    if leaf.kept is None:
        shape = leaf.scores.shape
        return [jnp.full(shape[0], math.prod(shape[1:]), np.int32)]
    return _count([_candidates(leaf, grow, True)])


@partial(jax.jit, static_argnames="dtype")
def find_ends(leaf: Leaf, grow: jax.Array, dtype: Any) -> list[jax.Array]:
    """The least and the highest key of candidates, ``[pools]`` each, in one read.

    Without candidates the least is above the highest.
    """
    leaf = lax.optimization_barrier(leaf)
    real = np.float64 if np.dtype(dtype).itemsize == 8 else np.float32
    keys = keys_of(leaf.scores.astype(real))
    here = _candidates(leaf, grow, True)
    least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
    bounds = np.array(most, dtype), np.array(least, dtype)
    ends = lax.reduce(
        tuple(jnp.where(here, keys, bound) for bound in bounds),
        bounds,
        lambda a, b: (lax.min(a[0], b[0]), lax.max(a[1], b[1])),
        tuple(range(1, keys.ndim)),
    )
    return list(ends)


def _wide(values: jax.Array, leaf: Leaf) -> jax.Array:
    """A value per pool, for each of the pool's units."""
    return lax.broadcast_in_dim(values, leaf.scores.shape, (0,))


def _at_most(leaf: Leaf, limit: jax.Array) -> jax.Array:
    """Which scores are at or under a limit; NaN is above all, -0 is 0.

    Scores are compared as floats: subnormals are what the backend takes them
    for, as they are in ``jnp.argsort``.
    """
    return leaf.scores.astype(limit.dtype) <= _wide(limit, leaf)


def _under(leaf: Leaf, cuts: jax.Array) -> list[jax.Array]:
    """Which scores are under each cut; all are at or under a ``high`` of NaN."""
    one = np.ones((), np.int32)
    cuts, one = lax.optimization_barrier((cuts, one))  # see `_flat_index`
    limits, bounds = float_of(cuts), cuts.astype(np.int32)
    high = limits[-1]
    ties = _at_most(leaf, high) | _wide(jnp.isnan(high), leaf)
    index = _flat_index(leaf.scores.shape, one)
    return [
        _at_most(leaf, limits[i])
        | (ties & (index >= _wide(bounds[i + 1], leaf)))
        for i in range(0, len(cuts) - 1, 2)
    ]


def _flat_index(shape: tuple[int, ...], one: jax.Array) -> jax.Array:
    """Where in its pool each unit is.

    Times a one that is known only inside a loop: else the compiler makes all
    indices once, outside, and keeps them.
    """
    if len(shape) == 1:
        return lax.full(shape, np.int32(0))
    index = lax.broadcasted_iota(np.int32, shape, len(shape) - 1)
    for axis in range(1, len(shape) - 1):
        stride = one * np.int32(math.prod(shape[axis + 1 :]))
        index += lax.broadcasted_iota(np.int32, shape, axis) * stride
    return index


def _candidates(leaf: Leaf, grow: jax.Array, flags: Any) -> Any:
    """Those of ``flags`` between which is chosen."""
    if leaf.kept is None:
        return flags
    here = leaf.kept != _wide(grow != 0, leaf)
    return here if flags is True else here & flags


def _count(flags: list[jax.Array]) -> list[jax.Array]:
    """``[pools]`` each: True entries, of several arrays in one read."""
    if len(flags) == 1:
        # The compiler splits a sum of one array, and stores what is summed.
        return lax.optimization_barrier(_count([flags[0], ~flags[0]]))[:1]
    shape = flags[0].shape
    # Rows first, if they are long: the CPU backend shares out what is summed to
    # several numbers among its threads. On a mesh it would gather them.
    rows = (
        jax.device_count() == 1
        and shape[0] == 1
        and math.prod(shape[2:]) >= 512
    )
    counts = lax.reduce(
        tuple(flag.astype(np.int32) for flag in flags),
        (np.int32(0),) * len(flags),
        lambda a, b: tuple(map(lax.add, a, b)),
        tuple(range(2 if rows else 1, len(shape))),
    )
    if rows:
        counts = [jnp.sum(c, axis=1, dtype=np.int32) for c in counts]
    return list(counts)
