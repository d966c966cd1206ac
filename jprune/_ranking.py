"""Which units stay in very many pools of few units: by comparing all pairs."""

import jax
import jax.numpy as jnp

from jprune._plan import split


def select_few(
    units: list[jax.Array],
    wanted: jax.Array,
    kept: list[jax.Array] | None = None,
) -> list[jax.Array]:
    """Marks the best units of each pool.

    A bracket for each pool, as in :func:`jprune.selection.select`, would take
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
    each = split(wanted, [1] * len(units))
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
