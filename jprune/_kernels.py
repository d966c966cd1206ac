"""What exact selection does to one leaf: count what goes, write the mask.

What is asked comes as rows of bits, ``[rows, pools]`` unsigned (:func:`rows_of`).
The last one says whether the kept are all kept and the choice is among the others.

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
from jprune._layout import on_mesh

EVERY = 2**31 - 1
"""A bound before which all flat indices lie."""


class Leaf(NamedTuple):
    """One leaf of units, and which of them were kept."""

    scores: jax.Array  # [pools, ...] floating
    kept: jax.Array | None  # [pools, ...] bool; None: the choice is among all


def rows_of(keys: jax.Array, *common: jax.Array) -> jax.Array:
    """``[points, entries]`` and a row of each of the others, ``[entries]`` or ``[1]``."""
    each = [keys, *(row.astype(keys.dtype)[None] for row in common)]
    entries = max(x.shape[-1] for x in each)
    return jnp.concatenate(
        [jnp.broadcast_to(x, (len(x), entries)) for x in each]
    )


@jax.jit
def count_at_most(leaf: Leaf, asked: jax.Array) -> list[jax.Array]:
    """The candidates with scores at or under each row but the last, ``[pools]``."""
    if leaf.kept is not None or leaf.scores.itemsize != asked.itemsize:
        # Without the barrier the compiler prepares the scores once, outside
        # the loop, and keeps them: a copy of the scores, and no faster.
        leaf, asked = lax.optimization_barrier((leaf, asked))
    flags = [_at_most(leaf, low) for low in float_of(asked[:-1])]
    return _count([_candidates(leaf, asked[-1], x) for x in flags])


@jax.jit
def count_divided(leaf: Leaf, asked: jax.Array) -> list[jax.Array]:
    """The candidates that go if equals are divided at some indices, ``[pools]``.

    The last rows are ``low``, ``high`` and the common one. All scores at or under
    ``low`` go, and of those at or under ``high`` the ones whose flat index is not
    before a bound; a bound is in each of the other rows.
    """
    leaf, asked = lax.optimization_barrier((leaf, asked))
    order, bounds = _order(leaf, asked), asked[:-3].astype(np.int32)
    flags = [order >= _wide(bound, leaf) for bound in bounds]
    return _count([_candidates(leaf, asked[-1], x) for x in flags])


@jax.jit
def mark(leaf: Leaf, asked: jax.Array) -> jax.Array:
    """What was kept and is no candidate, and what does not go with one bound."""
    stays = _order(leaf, asked) < _wide(asked[0].astype(np.int32), leaf)
    if leaf.kept is None:
        return stays
    here = _candidates(leaf, asked[-1], True)
    return (here & stays) | (~here & leaf.kept)


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


def _order(leaf: Leaf, asked: jax.Array) -> jax.Array:
    """The flat index of equals, ``EVERY`` for what is under them, -1 above."""
    # A one that is known only inside a loop: else the compiler makes all indices
    # once, outside, and keeps them.
    one = np.ones((), np.int32)
    asked, one = lax.optimization_barrier((asked, one))
    low, high = float_of(asked[-3:-1])
    ties = _at_most(leaf, high) | _wide(jnp.isnan(high), leaf)  # all under NaN
    shape, sharding = leaf.scores.shape, jax.typeof(leaf.scores).sharding
    explicit = sharding.mesh.are_all_axes_explicit
    iota = partial(
        lax.broadcasted_iota,
        np.int32,
        shape,
        out_sharding=sharding if explicit else None,
    )
    index = iota(len(shape) - 1) if len(shape) > 1 else np.int32(0)
    for axis in range(1, len(shape) - 1):
        index += iota(axis) * (one * np.int32(math.prod(shape[axis + 1 :])))
    return jnp.where(
        _at_most(leaf, low),
        np.int32(EVERY),
        jnp.where(ties, index, np.int32(-1)),
    )


def _candidates(leaf: Leaf, grow: jax.Array, flags: Any) -> Any:
    """Those of ``flags`` between which is chosen."""
    if leaf.kept is None:
        return flags
    here = leaf.kept != _wide(grow.astype(bool), leaf)
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
        not on_mesh(flags[0]) and shape[0] == 1 and math.prod(shape[2:]) >= 512
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
