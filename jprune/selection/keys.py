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


def full_range(dtype: Any) -> tuple[Any, Any]:
    """Keys under those of all floats, and at those of all."""
    sign, infinity = landmarks(dtype)
    one = np.array(1, dtype)
    return sign - infinity - one, sign + infinity + one


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


_BITS: dict[np.dtype, np.dtype] = {
    np.dtype(np.float16): np.dtype(np.uint16),
    np.dtype(jnp.bfloat16): np.dtype(np.int16),
    np.dtype(np.float32): np.dtype(np.uint32),
    np.dtype(np.float64): np.dtype(np.uint64),
}
_FLOATS = {bits: real for real, bits in _BITS.items()}


def bits_type(dtype: Any) -> Any:
    """The type of the bits of floats, which tells what they are of."""
    return _BITS[np.dtype(dtype)]


def none(dtype: Any) -> np.ndarray:
    """What is never counted: bits of no score, NaN that is above all, or False."""
    dtype = np.dtype(dtype)
    if dtype in _FLOATS:
        return np.full((), 2 ** (8 * dtype.itemsize) - 1, np.uint64).astype(
            dtype
        )
    return np.array(np.nan if jnp.issubdtype(dtype, jnp.floating) else 0, dtype)


def scores_of(x: jax.Array) -> jax.Array:
    """Scores, if need be from their bits."""
    real = _FLOATS.get(np.dtype(x.dtype))
    return x if real is None else lax.bitcast_convert_type(x, real)
