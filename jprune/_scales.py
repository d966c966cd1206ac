"""Powers of two that keep squares inside the range of floats."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def scale_of(largest: jax.Array) -> jax.Array:
    """The factor that brings entries up to ``largest`` near one.

    A power of two, so that scaling is exact; a factor and no divisor, as XLA
    divides by multiplying with a reciprocal, which may be subnormal.
    """
    _, exponent = jnp.frexp(lax.stop_gradient(largest))
    least = jnp.finfo(largest.dtype).minexp
    exponent = jnp.clip(1 - exponent, least, -least)
    return jnp.ldexp(jnp.ones((), largest.dtype), exponent)


def top_of(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The largest finite magnitude along some axes, which stay with size 1."""
    finite = jnp.where(jnp.isfinite(x), jnp.abs(x), 0)
    return jnp.max(finite, axes, keepdims=True, initial=0)


def spread(x: jax.Array, scale: jax.Array) -> jax.Array:
    """``x * scale`` times one power of two for all, the largest that fits.

    Ratios of floats need twice their range: from one downwards alone they would
    lose the order of what is small. ``scale`` is that of :func:`scale_of`.
    """
    info = jnp.finfo(x.dtype)
    _, exponent = jnp.frexp(scale)
    # Added to the exponents, as XLA makes one factor of two: up to 2 ** 252.
    whole = np.uint64 if info.bits == 64 else np.uint32
    steps = (exponent - 1 - info.minexp).astype(whole) << whole(info.nmant)
    bits = lax.bitcast_convert_type(x, whole) + steps
    moved = lax.bitcast_convert_type(bits, x.dtype)
    return jnp.where(jnp.abs(x) < info.tiny, jnp.zeros_like(x), moved)
