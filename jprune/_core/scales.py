"""Powers of two that keep squares inside the range of floats.

They are made of the exponents' bits: exact, and of nothing that a compiler turns
into a reciprocal or a product that is no float.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def scale_of(largest: jax.Array) -> jax.Array:
    """The factor that brings entries up to ``largest`` near one; 0 < it < inf.

    A factor and no divisor, as XLA divides by multiplying with a reciprocal,
    which may be subnormal.
    """
    info = jnp.finfo(largest.dtype)
    most = 2 * info.maxexp - 2  # the exponent of the largest, as bits are
    exponents = jnp.clip(most - _exponents(largest), 1, most - 1)
    bits = exponents.astype(_whole(info)) << _whole(info)(info.nmant)
    return lax.bitcast_convert_type(bits, largest.dtype)


def top_of(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The largest magnitude along some axes, which stay with size 1."""
    return jnp.max(jnp.abs(x), axes, keepdims=True, initial=0)


def sum_of_squares(
    x: jax.Array, axes: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """That of ``x * scale`` along some axes, which stay with size 1, and ``scale``.

    Each sum has a scale of its own: with one for all, what is 1e-19 of the largest
    would be lost, as its squares are no floats.
    """
    scale = scale_of(top_of(x, axes))
    return jnp.sum((x * scale) ** 2, axes, keepdims=True), scale


def spread(x: jax.Array, scale: jax.Array) -> jax.Array:
    """``x * scale`` times one power of two for all, the largest that fits.

    Ratios of floats need twice their range: from one downwards alone they would
    lose the order of what is small. ``scale`` is that of :func:`scale_of`.
    """
    info = jnp.finfo(x.dtype)
    # Added to exponents: the factor, up to 2 ** 252 in float32, is no float.
    steps = (_exponents(scale) - 1).astype(_whole(info))
    bits = lax.bitcast_convert_type(x, _whole(info))
    bits = bits + (steps << _whole(info)(info.nmant))
    moved = lax.bitcast_convert_type(bits, x.dtype)
    return jnp.where(jnp.abs(x) < info.tiny, jnp.zeros_like(x), moved)


def _exponents(x: jax.Array) -> jax.Array:
    """Those of floats that are not negative, as bits are; of subnormals 0."""
    info = jnp.finfo(x.dtype)
    bits = lax.bitcast_convert_type(lax.stop_gradient(x), _whole(info))
    return (bits >> _whole(info)(info.nmant)).astype(np.int32)


def _whole(info: Any) -> type[np.uint32 | np.uint64]:
    return np.uint64 if info.bits == 64 else np.uint32
