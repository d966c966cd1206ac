"""Whole numbers beyond 2**31 without 64-bit types, and exact rounding.

A pool may hold 2**40 units, and JAX has no 64-bit integers unless x64 is on.
A :class:`Count` is two int32 limbs in base 2**16; both are arrays, so that one
operation serves every pool of a tree.
"""

import math
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jprune._core.checks import is_fraction
from jprune._core.trees import at_least_float32


class Count(NamedTuple):
    """The integers ``high * 2**16 + low`` with ``0 <= low < 2**16``."""

    high: jax.Array  # int32
    low: jax.Array  # int32


def count_of(number: Any) -> Count:
    """From Python ints, a NumPy int64 array, or a JAX integer array."""
    if isinstance(number, Count):
        return number
    if not isinstance(number, jax.Array):
        number = np.asarray(number, np.int64)
    elif number.dtype.itemsize < 4:
        number = number.astype(jnp.int32)
    return Count(
        jnp.asarray(number >> 16, jnp.int32),
        jnp.asarray(number & 0xFFFF, jnp.int32),
    )


def to_int32(count: Count) -> jax.Array:
    """The plain integers, for counts known to be below 2**31."""
    return count.high * 2**16 + count.low


def to_float(count: Count) -> jax.Array:
    """The nearest float (float64 under x64)."""
    return count.high.astype(float) * 2**16 + count.low.astype(float)


def add(a: Count, b: Count) -> Count:
    """``a + b``."""
    low = a.low + b.low
    return Count(a.high + b.high + (low >> 16), low & 0xFFFF)


def subtract(a: Count, b: Count) -> Count:
    """``a - b``; the high limb carries the sign."""
    low = a.low - b.low  # the shift of a negative number borrows
    return Count(a.high - b.high + (low >> 16), low & 0xFFFF)


def less(a: Count, b: Count) -> jax.Array:
    """``a < b``."""
    return (a.high < b.high) | ((a.high == b.high) & (a.low < b.low))


def equal(a: Count, b: Count) -> jax.Array:
    """``a == b``."""
    return (a.high == b.high) & (a.low == b.low)


def where(condition: jax.Array, a: Count, b: Count) -> Count:
    """``a`` where ``condition``, else ``b``."""
    return Count(
        jnp.where(condition, a.high, b.high), jnp.where(condition, a.low, b.low)
    )


def total(counts: Count) -> Count:
    """The sum along the first axis, of up to 2**15 counts."""
    low = jnp.sum(counts.low, axis=0, dtype=jnp.int32)
    high = jnp.sum(counts.high, axis=0, dtype=jnp.int32)
    return Count(high + (low >> 16), low & 0xFFFF)


def cumulative(counts: Count) -> Count:
    """The running totals along the first axis, of up to 2**15."""
    low = jnp.cumsum(counts.low, axis=0, dtype=jnp.int32)
    high = jnp.cumsum(counts.high, axis=0, dtype=jnp.int32)
    return Count(high + (low >> 16), low & 0xFFFF)


def share(amount: Count, limits: Count) -> Count:
    """Deals an ``amount`` out along the first axis, to each no more than its limit."""
    before = subtract(cumulative(limits), limits)
    left = subtract(amount, before)
    none = jax.tree.map(jnp.zeros_like, left)
    left = where(less(left, none), none, left)
    return where(less(limits, left), limits, left)


def fraction_of(fraction: Any, sizes: Any) -> Any:
    """``round(fraction * size)`` for each size, half to even.

    Args:
      fraction: A number in [0, 1]. A Python one is multiplied in float64, as
        Python does. An array, traced or not, is the number that its bits say,
        and the product is formed exactly.
      sizes: Integers, each at most 2**40, or a :class:`Count`.

    Returns:
      A NumPy int64 array for a Python number of known sizes, else a
      :class:`Count`.
    """
    if isinstance(sizes, Count | jax.Array):
        fraction = jnp.asarray(fraction, float)
    else:
        sizes = np.asarray(sizes, np.int64)
    if not isinstance(fraction, jax.Array):
        return np.array(
            [round(float(fraction) * int(n)) for n in sizes.flat], np.int64
        ).reshape(sizes.shape)
    fraction = _clipped(fraction)
    bits = jnp.finfo(fraction.dtype).nmant + 1
    mantissa, exponent = jnp.frexp(fraction)
    unsigned = jnp.uint64 if bits > 32 else jnp.uint32
    mantissa = jnp.asarray(mantissa * 2.0**bits, unsigned)
    size = count_of(sizes)
    zero = jnp.zeros_like(size.low)

    # Schoolbook shift-and-add, from the lowest bit of the mantissa: what is
    # shifted out of the product is the half (last bit) and the rest (sticky).
    def step(i: jax.Array, carry: Any) -> Any:
        product, half, rest = carry
        bit = (mantissa >> jnp.minimum(i, bits - 1).astype(unsigned)) & 1
        one = (i < bits) & (bit == 1)
        taken = add(product, where(one, size, Count(zero, zero)))
        shifted = Count(
            taken.high >> 1, (taken.low >> 1) | ((taken.high & 1) << 15)
        )
        return shifted, taken.low & 1, rest | half

    # fraction = mantissa / 2**(bits - exponent); 48 more shifts clear 2**40.
    shifts = bits + jnp.minimum(-exponent, 48)
    start = (Count(zero, zero), zero, zero)
    product, half, rest = lax.fori_loop(0, shifts, step, start)
    up = half & (rest | (product.low & 1))
    product = add(product, Count(zero, up))
    # The mantissa of 1 is .5: it asks for one shift less than there are bits.
    return where(fraction >= 1, size, product)


def _clipped(fraction: jax.Array) -> jax.Array:
    # A schedule may leave [0, 1] by a rounding; else nothing goes, see there.
    valid, fraction = is_fraction(fraction), at_least_float32(fraction)
    return jnp.where(valid, jnp.clip(fraction, 0, 1), 0)


def density_of(sparsity: Any) -> Any:
    """What a sparsity leaves of one."""
    return 1 - (
        _clipped(sparsity) if isinstance(sparsity, jax.Array) else sparsity
    )


def left_of(sparsity: Any, sizes: Any) -> Any:
    """What is left of each size: the rounding is that of the units lost."""
    lost = fraction_of(sparsity, sizes)
    if isinstance(lost, Count):
        return subtract(count_of(sizes), lost)
    return np.asarray(sizes, np.int64) - lost


def floor_of(values: Any) -> Count:
    """The whole numbers under some floats that are not negative."""
    if not isinstance(values, jax.Array):
        return count_of(np.floor(values))
    high = jnp.floor(values / 2**16)
    low = jnp.floor(values - high * 2**16)
    return Count(high.astype(jnp.int32), low.astype(jnp.int32))


def at_least(fraction: float, sizes: Any) -> np.ndarray:
    """``fraction * sizes``, rounded up: int64.

    As a decimal: in binary .1 is more than a tenth, and 2 of 10 would stay.
    """
    exact = Fraction(repr(fraction))
    return np.array([math.ceil(exact * int(n)) for n in sizes], np.int64)
