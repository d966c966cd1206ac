"""Floats as unsigned integers, *keys*, that rise with them.

Keys are bit patterns, turned so that the order is that of the floats; -0 has the
key of 0.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def landmarks(dtype: Any) -> tuple[Any, Any]:
    """The key of 0, and how far from it the keys of infinity are."""
    dtype = np.dtype(dtype)
    real = np.dtype(np.float64 if dtype.itemsize == 8 else np.float32)
    sign = np.array(1, dtype) << np.array(8 * dtype.itemsize - 1, dtype)
    return sign, np.array(np.inf, real).view(dtype)


def full_range(dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Keys under those of all floats, and at those of all: ``[1]`` each."""
    sign, infinity = landmarks(dtype)
    return jnp.full(1, sign - infinity - 1), jnp.full(1, sign + infinity + 1)


def bits_of(keys: jax.Array) -> jax.Array:
    """The floats that keys stand for; beyond the infinities they are NaN."""
    sign, _ = landmarks(keys.dtype)
    return jnp.where(keys < sign, sign + (sign - keys), keys - sign)


def float_of(bits: jax.Array) -> jax.Array:
    """The floats of bit patterns."""
    real = np.float64 if bits.dtype.itemsize == 8 else np.float32
    return lax.bitcast_convert_type(bits, real)


def keys_of(x: jax.Array) -> jax.Array:
    """The keys of floats of 32 or 64 bits; all NaN have the next after infinity."""
    dtype = np.uint64 if x.dtype.itemsize == 8 else np.uint32
    sign, infinity = landmarks(dtype)
    bits = lax.bitcast_convert_type(x, dtype)
    keys = jnp.where(bits < sign, sign + bits, sign - (bits - sign))
    return jnp.where(jnp.isnan(x), sign + infinity + 1, keys)


def outside(low: jax.Array, high: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Ends that are not subnormal, which the backend may take for 0."""
    sign, _ = landmarks(low.dtype)
    real = np.float64 if low.dtype.itemsize == 8 else np.float32
    tiny = np.array(np.finfo(real).tiny).view(low.dtype)
    low_in = (low > sign - tiny) & (low < sign + tiny)
    high_in = (high > sign - tiny) & (high < sign + tiny)
    return (
        jnp.where(low_in, sign - tiny, low),
        jnp.where(high_in, sign + tiny, high),
    )
