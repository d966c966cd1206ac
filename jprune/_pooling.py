"""How the scores of a unit's weights become the score of the unit.

No order is lost that float32 scores have, but for two limits of the floats
themselves: a norm above the largest is infinite, and what is below the smallest
normal one, 1.2e-38, is 0 on backends that flush subnormal numbers (XLA's CPU).
"""

from typing import Any

import jax
import jax.numpy as jnp

from jprune._layout import Layout, members, split
from jprune._scales import scale_of, top_of


def of_weights(layout: Layout) -> tuple[int, ...]:
    """The axes of :func:`split` over which a unit is pooled."""
    return tuple(range(2, 2 * len(layout.groups) - 1, 2))


def _sums(
    x: jax.Array, layout: Layout, power: int
) -> tuple[jax.Array, jax.Array]:
    """Of each unit a sum of powers, scaled by a power of two, and the scale.

    Each unit has its own: one for all would lose units that are 1e-19 of the
    largest, as their squares are no floats.
    """
    x, axes = split(x, layout), of_weights(layout)
    scale = scale_of(top_of(x, axes))
    return jnp.sum((x * scale) ** power, axes), jnp.squeeze(scale, axes)


def _l2(x: jax.Array, layout: Layout) -> jax.Array:
    squares, scale = _sums(x, layout, 2)
    return jnp.sqrt(squares) / scale


def _l1(x: jax.Array, layout: Layout) -> jax.Array:
    return jnp.abs(split(x, layout)).sum(of_weights(layout))


def _mean(x: jax.Array, layout: Layout) -> jax.Array:
    sums, scale = _sums(x, layout, 1)
    return sums / members(layout, x.shape)[None].astype(x.dtype) / scale


def _max(x: jax.Array, layout: Layout) -> jax.Array:
    whole = split(x, layout, -jnp.inf)
    return whole.max(of_weights(layout), initial=-jnp.inf)


POOLINGS = {"l2": _l2, "l1": _l1, "mean": _mean, "max": _max}


def check_pooling(call: str, pooling: Any) -> None:
    """Refuses what names no pooling."""
    if pooling not in POOLINGS:
        raise ValueError(
            f"`{call}(pooling=...)` must be one of {', '.join(map(repr, POOLINGS))}"
            f", got {pooling!r}."
        )
