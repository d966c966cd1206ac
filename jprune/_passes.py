"""What exact selection does to one leaf: count under thresholds, write the mask.

Everything here is jitted, so that it is traced once for all leaves of one
shape; what it compiles to is a single read of the leaf, without copies.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

EVERY = np.int32(2**31 - 1)
"""The bound before which all flat indices lie."""


class Leaf(NamedTuple):
    """One leaf of units, and what makes a unit a candidate."""

    scores: jax.Array  # [pools, ...] floating
    kept: jax.Array | None  # [pools, ...] bool; None: all are candidates
    grow: jax.Array | None  # [pools] bool: the candidates are those not kept


@jax.jit
def count_under(leaf: Leaf, limits: jax.Array) -> list[jax.Array]:
    """The candidates at or under each limit, ``[pools]``."""
    if leaf.kept is not None or leaf.scores.dtype != limits.dtype:
        # Without the barrier the compiler prepares the scores once, outside
        # the loop, and keeps them: a copy of the scores, and no faster.
        leaf, limits = lax.optimization_barrier((leaf, limits))
    return _count([candidates(leaf, _under(leaf, x)) for x in limits])


@jax.jit
def count_ties(leaf: Leaf, limits: jax.Array, bounds: jax.Array) -> jax.Array:
    """``[points, pools]``: ties before each bound of the flat index."""
    leaf, limits, bounds = lax.optimization_barrier((leaf, limits, bounds))
    ties = ~_under(leaf, limits[0]) & _under_end(leaf, limits[1])
    ties = candidates(leaf, ties)
    return _count([ties & _before(leaf, bound) for bound in bounds])


@jax.jit
def mark(leaf: Leaf, limits: jax.Array, bound: jax.Array) -> jax.Array:
    """What was kept and is no candidate, scores above, the first of the ties."""
    above = ~_under_end(leaf, limits[1]) | _before(leaf, bound)
    best = ~_under(leaf, limits[0]) & above
    if leaf.kept is None or leaf.grow is None:
        return best
    grow = _wide(leaf.grow, leaf)
    return jnp.where(grow, leaf.kept | best, leaf.kept & best)


@jax.jit
def count_true(flags: jax.Array) -> jax.Array:
    """``[pools]``: how many are True, int32."""
    return _count([flags])[0]


def _wide(values: jax.Array, leaf: Leaf) -> jax.Array:
    """A value per pool, to broadcast over the pool's units."""
    return values.reshape((-1,) + (1,) * (leaf.scores.ndim - 1))


def _under(leaf: Leaf, limit: jax.Array) -> jax.Array:
    """Which scores are at or under a limit; NaN is above all, -0 is 0.

    Scores are compared as floats: subnormals are what the backend takes them
    for, as they are in ``jnp.argsort``.
    """
    return leaf.scores.astype(limit.dtype) <= _wide(limit, leaf)


def _under_end(leaf: Leaf, limit: jax.Array) -> jax.Array:
    """The same for the high end of a bracket: all is under NaN."""
    return _under(leaf, limit) | _wide(jnp.isnan(limit), leaf)


def candidates(leaf: Leaf, flags: jax.Array | bool = True) -> jax.Array:
    """Those of ``flags`` between which is chosen."""
    if leaf.kept is None or leaf.grow is None:
        return jnp.asarray(flags)
    return flags & (leaf.kept != _wide(leaf.grow, leaf))


def _before(leaf: Leaf, bound: jax.Array) -> jax.Array:
    """Whether the flat index in the pool is below a bound."""
    # In two parts, rows and columns: an index array of full size would be made
    # once, outside the loop, and kept.
    shape = leaf.scores.shape[1:]
    splits = range(len(shape) + 1)
    at = min(splits, key=lambda i: math.prod(shape[:i]) + math.prod(shape[i:]))
    width = math.prod(shape[at:])
    rows = lax.iota(np.int32, math.prod(shape[:at])) * np.int32(width)
    rows = rows.reshape(shape[:at] + (1,) * (len(shape) - at))
    columns = lax.iota(np.int32, width).reshape(shape[at:])
    return columns < _wide(bound, leaf) - rows


def _count(flags: list[jax.Array]) -> list[jax.Array]:
    """``[pools]`` each: True entries, of several arrays in one read."""
    if len(flags) == 1:
        # The compiler splits a sum of one array, and stores what is summed.
        return lax.optimization_barrier(_count([flags[0], ~flags[0]]))[:1]
    shape = flags[0].shape
    # Rows first, if they are long: the CPU backend shares out what is summed to
    # several numbers among its threads.
    rows = shape[0] == 1 and np.prod(shape[2:], dtype=int) >= 512
    counts = lax.reduce(
        tuple(flag.astype(np.int32) for flag in flags),
        (np.int32(0),) * len(flags),
        lambda a, b: tuple(map(lax.add, a, b)),
        tuple(range(2 if rows else 1, len(shape))),
    )
    if rows:
        counts = [jnp.sum(c, axis=1, dtype=np.int32) for c in counts]
    return list(counts)
