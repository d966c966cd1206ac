"""What exact selection does to one leaf: count what goes, write the mask.

What is asked comes as rows of bits, ``[rows, pools]`` unsigned. The last three are
``low`` and ``high``, between which the last score lies, and whether units that are
no candidates stay (:func:`among`).

Counts are ``[numbers, pools]``, int32. Everything here is jitted, so that it is
traced once for all leaves of one shape; what it compiles to is a single read of the
leaf, without copies.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jprune._core.layout import on_mesh
from jprune._core.xla import made_once, not_hoisted
from jprune.selection.keys import bits_type, float_of, none, scores_of


def in_rows(x: jax.Array) -> jax.Array:
    """``[pools, ...]`` as ``[pools, rows, units]``, so that shapes matter less.

    On a mesh the axes stay, since they may be divided.
    """
    if on_mesh(x):
        return x
    pools, size = len(x), math.prod(x.shape[1:])
    rows = [n for n in range(1, 33) if size % n == 0 and size >= 2**15]
    many = max(rows, default=1)
    return x.reshape(pools, many, size // many)


@jax.jit
def among(scores: jax.Array, kept: jax.Array, grow: jax.Array) -> jax.Array:
    """The bits of the scores of candidates; other units have bits of their own.

    Candidates are what was not kept where pools ``grow``, else what was. Bits, since
    arithmetic on floats may turn one NaN into another.
    """
    if scores.itemsize == 1:  # all floats of 8 bits are floats of these 16
        scores = scores.astype(jnp.bfloat16)
    here = kept != _wide(grow, kept)
    dtype = bits_type(scores.dtype)
    nan = np.array(np.nan, scores.dtype).view(dtype)
    bits = lax.bitcast_convert_type(scores, dtype)
    bits = jnp.where(jnp.isnan(scores), nan, bits)
    return jnp.where(here, bits, none(dtype))


@jax.jit
def count_at_most(x: jax.Array, asked: jax.Array) -> jax.Array:
    """The candidates with scores at or under each row but the last three."""
    if x.itemsize != asked.itemsize:
        x, asked = not_hoisted((x, asked))  # of the scores in another precision
    return _count([_at_most(x, low) for low in float_of(asked[:-3])])


@jax.jit
def count_divided(x: jax.Array, asked: jax.Array) -> jax.Array:
    """The candidates that go if so many of the last places go.

    All scores at or under ``low`` go, and of those at or under ``high`` the ones in
    the last places; how many places is in each of the other rows.
    """
    x, asked = not_hoisted((x, asked))
    low, high = float_of(asked[-3:-1])
    nan = _wide(jnp.isnan(high), x)  # all others are equal, and NaN
    ties = _at_most(x, high) | (nan & ~_is_none(x))
    place = jnp.where(ties, _places(x), np.int32(2**31 - 1))
    place = jnp.where(_at_most(x, low), np.int32(-1), place)
    last = asked[:-3].astype(np.int32)
    return _count([place < _wide(n, x) for n in last])


@jax.jit
def mark(x: jax.Array, asked: jax.Array) -> jax.Array:
    """What does not go: of each leaf a kernel, and so of few operations.

    The first row says how many of the last places go, the second the same where
    equals are NaN, and else nothing.
    """
    shape = x.shape
    if not on_mesh(x):
        x = x.reshape(len(x), math.prod(shape[1:]))
    asked = made_once(asked)  # what brings each leaf its own
    last, nan = asked[:2].astype(np.int32)
    low, high = float_of(asked[2:4])
    place = _places(x)
    limit = jnp.where(place < _wide(last, x), _wide(high, x), _wide(low, x))
    low_enough = scores_of(x).astype(limit.dtype) <= limit
    stays = ~(low_enough | (place < _wide(nan, x)))
    if not jnp.issubdtype(x.dtype, jnp.floating):
        others = _wide(asked[-1].astype(bool), x)
        stays = jnp.where(_is_none(x), others, stays)
    return stays.reshape(shape)


@jax.jit
def count_true(flags: jax.Array) -> jax.Array:
    """How many are True."""
    # The compiler splits a sum of one array, and stores what is summed.
    return made_once(_count([flags, ~flags]))[:1]


def _wide(values: jax.Array, x: jax.Array) -> jax.Array:
    """A value per pool, for each of the pool's units, laid out as they are."""
    return lax.broadcast_in_dim(
        values, x.shape, (0,), out_sharding=_explicit(x)
    )


def _explicit(x: jax.Array) -> Any:
    """How ``x`` is divided on an Explicit mesh, else None."""
    sharding = jax.typeof(x).sharding
    return sharding if sharding.mesh.are_all_axes_explicit else None


def _is_none(x: jax.Array) -> jax.Array:
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    return jnp.zeros((), bool) if floating else x == none(x.dtype)


def _at_most(x: jax.Array, limit: jax.Array) -> jax.Array:
    """Which scores are at or under a limit; NaN is above all, -0 is 0.

    Scores are compared as floats: subnormals are what the backend takes them
    for, as they are in ``jnp.argsort``.
    """
    return scores_of(x).astype(limit.dtype) <= _wide(limit, x)


def _places(x: jax.Array) -> jax.Array:
    """The flat index of each unit, counted from the end."""
    one = not_hoisted(np.ones((), np.int32))
    sharding, step = _explicit(x), 1
    place = lax.full(
        x.shape, np.int32(math.prod(x.shape[1:]) - 1), sharding=sharding
    )
    for axis in range(x.ndim - 1, 0, -1):
        index = lax.broadcasted_iota(
            np.int32, x.shape, axis, out_sharding=sharding
        )
        place, step = (
            place - index * (one * np.int32(step)),
            step * x.shape[axis],
        )
    return place


def _count(flags: list[jax.Array]) -> jax.Array:
    """``[numbers, pools]`` int32: True entries, of several arrays in one read."""
    # Rows first: the CPU backend shares out what is summed to several numbers
    # among its threads.
    flat = on_mesh(flags[0])
    counts = lax.reduce(
        tuple(flag.astype(np.int32) for flag in flags),
        (np.int32(0),) * len(flags),
        lambda a, b: tuple(map(lax.add, a, b)),
        tuple(range(1 if flat else 2, flags[0].ndim)),
    )
    if not flat:
        counts = [c.sum(1, dtype=np.int32) for c in counts]
    return jnp.stack(counts)
