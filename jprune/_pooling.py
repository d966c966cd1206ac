"""How the scores of a unit's weights become the score of the unit."""

from typing import Any

import jax
import jax.numpy as jnp

from jprune._layout import Layout, members, split


def of_weights(layout: Layout) -> tuple[int, ...]:
    """The axes of :func:`split` over which a unit is pooled."""
    return tuple(range(2, 2 * len(layout.groups) - 1, 2))


def _l2(x: jax.Array, layout: Layout) -> jax.Array:
    # Squares of gradients' squares underflow, so that the largest is made 1; by
    # a power of two, which is exact.
    top = jnp.max(jnp.where(jnp.isfinite(x), jnp.abs(x), 0), initial=0)
    exponent = jnp.clip(jnp.frexp(top)[1], -120, 120)
    scale = jnp.ldexp(jnp.ones((), x.dtype), -exponent)
    squares = split(x * scale, layout) ** 2
    return jnp.sqrt(squares.sum(of_weights(layout))) / scale


def _l1(x: jax.Array, layout: Layout) -> jax.Array:
    return jnp.abs(split(x, layout)).sum(of_weights(layout))


def _mean(x: jax.Array, layout: Layout) -> jax.Array:
    sums = split(x, layout).sum(of_weights(layout))
    return sums / members(layout, x.shape).astype(x.dtype)


def _max(x: jax.Array, layout: Layout) -> jax.Array:
    return split(x, layout, -jnp.inf).max(of_weights(layout))


POOLINGS = {"l2": _l2, "l1": _l1, "mean": _mean, "max": _max}


def check_pooling(call: str, pooling: Any) -> None:
    """Refuses what names no pooling."""
    if pooling not in POOLINGS:
        raise ValueError(
            f"`{call}(pooling=...)` must be one of {', '.join(map(repr, POOLINGS))}"
            f", got {pooling!r}."
        )
