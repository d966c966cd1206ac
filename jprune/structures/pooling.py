"""How the scores of a unit's weights become the score of the unit.

No order is lost that float32 scores have, but for two limits of the floats
themselves: a norm above the largest is infinite, and what is below the smallest
normal one, 1.2e-38, is 0 on backends that flush subnormal numbers (XLA's CPU).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from jprune._core.layout import Layout, members, split_axes
from jprune._core.scales import sum_of_squares


def of_weights(layout: Layout) -> tuple[int, ...]:
    """The axes of :func:`split` over which a unit is pooled."""
    return tuple(range(2, 2 * len(layout.groups) - 1, 2))


def _weights(
    x: jax.Array, layout: Layout, fill: float = 0.0
) -> tuple[jax.Array, tuple[int, ...]]:
    """:func:`split`, and the axes of weights; there are none of one weight.

    XLA's CPU takes several times as long to reduce along those, too.
    """
    x, axes = split_axes(x, layout, fill), of_weights(layout)
    lone = [axis for axis in axes if x.shape[axis] == 1]
    left = [axis for axis in range(x.ndim) if axis not in lone]
    places = tuple(i for i, axis in enumerate(left) if axis in axes)
    return jnp.squeeze(x, lone), places


def _l2(x: jax.Array, layout: Layout) -> jax.Array:
    x, axes = _weights(x, layout)
    squares, scale = sum_of_squares(x, axes)
    return jnp.squeeze(jnp.sqrt(squares) / scale, axes)


def _l1(x: jax.Array, layout: Layout) -> jax.Array:
    return jnp.sum(*_weights(jnp.abs(x), layout))


def _mean(x: jax.Array, layout: Layout) -> jax.Array:
    number = members(layout, x.shape)[None].astype(x.dtype)
    x, axes = _weights(x, layout)
    sums = jnp.sum(x, axes)
    # A mean is a float where the sum is none.
    part = 0.5 ** math.ceil(math.log2(number.max(initial=1)))
    parts = jnp.sum(x * part, axes)
    return jnp.where(jnp.isfinite(sums), sums / number, parts / (number * part))


def _max(x: jax.Array, layout: Layout) -> jax.Array:
    return jnp.max(*_weights(x, layout, -jnp.inf), initial=-jnp.inf)


POOLINGS = {"l2": _l2, "l1": _l1, "mean": _mean, "max": _max}


def check_pooling(call: str, pooling: Any) -> None:
    """Refuses what names no pooling."""
    if pooling not in POOLINGS:
        raise ValueError(
            f"`{call}(pooling=...)` must be one of {', '.join(map(repr, POOLINGS))}"
            f", got {pooling!r}."
        )
