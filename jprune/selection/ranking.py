"""Which units stay where they are few: by sorting, or by comparing all pairs."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jprune._core.layout import everywhere
from jprune._core.trees import wide_dtype
from jprune.selection.plan import split_entries


@partial(jax.jit, static_argnames="joint")
def places(
    units: list[jax.Array], kept: list[jax.Array] | None, *, joint: bool
) -> list[jax.Array]:
    """Where each unit stands in the order of its pool, the best at 0.

    Two sorts of all: compiled soon, and slow if units are many.

    Args:
      units: Scores; unless in one ranking axis 0 of each indexes pools.
      kept: Bool arrays like ``units``: units that come before all others.
      joint: Whether all are one pool.

    Returns:
      int32 arrays like ``units``.
    """

    def flat(arrays: list[jax.Array], dtype: Any) -> jax.Array:
        return jnp.concatenate(
            [everywhere(x.astype(dtype).ravel()) for x in arrays]
        )

    real = wide_dtype(*(x.dtype for x in units))
    scores = flat(units, real)
    nan = jnp.isnan(scores)
    first = (~nan).astype(np.int32)  # NaN is above all
    if kept is not None:
        first += np.int32(2) * (~flat(kept, bool)).astype(np.int32)
    begin = np.zeros(scores.size, np.int32)  # of the unit's pool
    if not joint:
        sizes = np.repeat(
            [math.prod(x.shape[1:]) for x in units], [len(x) for x in units]
        )
        begin = np.repeat(np.cumsum(sizes) - sizes, sizes).astype(np.int32)
        first += np.int32(4) * begin
    down = jnp.where(nan, np.zeros((), real), -scores)
    index = lax.iota(np.int32, scores.size)
    *_, order = lax.sort((first, down, index), num_keys=2, is_stable=True)
    _, place = lax.sort((order, index), num_keys=1)
    ends = np.cumsum([x.size for x in units])[:-1]
    return [
        part.reshape(x.shape)
        for part, x in zip(jnp.split(place - begin, ends), units, strict=True)
    ]


def select_few(
    units: list[jax.Array],
    wanted: jax.Array,
    kept: list[jax.Array] | None = None,
) -> list[jax.Array]:
    """Marks the best units of each pool.

    A bracket for each pool, as in :func:`jprune.selection.select.select`, would take
    more memory than the units. Here a unit is compared with the others of its
    pool, in one fused pass of as many comparisons as a pool has units.

    Args:
      units: Scores; the last axis of each holds the units of a pool.
      wanted: How many to mark in every pool of each entry: int32, one number each.
      kept: Bool arrays like ``units``: units that come before all others.

    Returns:
      Bool arrays like ``units``; the order is that of ``select``.
    """
    masks: list[jax.Array] = []
    each = split_entries(wanted, [1] * len(units))
    for i, (x, count) in enumerate(zip(units, each, strict=True)):
        stay = None if kept is None else kept[i]
        masks.append(_ranks(x, stay) < count.reshape((1,) * x.ndim))
    return masks


@jax.jit
def _ranks(x: jax.Array, kept: jax.Array | None) -> jax.Array:
    """How many units of its pool come before each unit."""

    def pair(values: jax.Array) -> tuple[jax.Array, jax.Array]:
        return values[..., :, None], values[..., None, :]  # this, the other

    this, other = pair(x)
    above = (other > this) | (jnp.isnan(other) & ~jnp.isnan(this))
    below = (other < this) | (jnp.isnan(this) & ~jnp.isnan(other))
    if kept is not None:
        mine, yours = pair(kept)
        above = (yours & ~mine) | ((yours == mine) & above)
        below = (mine & ~yours) | ((mine == yours) & below)
    place = jnp.arange(x.shape[-1])
    earlier = place[None, :] < place[:, None]
    earlier = jnp.broadcast_to(earlier, above.shape)
    return jnp.sum(above | (~below & earlier), axis=-1, dtype=jnp.int32)


def count_alike(kept: jax.Array) -> jax.Array:
    """How many units every pool along the last axis has marked; -1 if various."""
    marked = jnp.sum(kept, axis=-1, dtype=jnp.int32)
    least = jnp.min(marked, initial=kept.shape[-1])
    return jnp.where(jnp.all(marked == least), least, -1)
