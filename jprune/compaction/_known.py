"""What is known about a value before any input is seen: its constants.

An axis along which nothing varies has size 1 here, whatever its size is; so a
bias stays a vector after it was broadcast to a batch.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np

Array: TypeAlias = Any  # of NumPy; its stubs take reductions for scalars


class Known(NamedTuple):
    """Which entries have one value for all inputs, and which value."""

    flags: Array  # bool; broadcasts to the value's shape
    value: Array  # of the shape of `flags`; 0 where unknown

    @property
    def zero(self) -> Array:
        """Which entries are 0 for all inputs."""
        return self.flags & (self.value == 0)

    def spread(self, axes: Sequence[int], shape: Sequence[int]) -> "Known":
        """The same with some axes at their true size."""
        full = list(self.flags.shape)
        for axis in axes:
            full[axis] = shape[axis]
        return self.map(lambda x: np.broadcast_to(x, full))

    def map(self, fn: Any) -> "Known":
        """The same function, of shapes only, of both arrays."""
        return Known(fn(self.flags), fn(self.value))


def constant(value: Any) -> Known:
    """All is known."""
    value = np.asarray(value)
    return Known(np.ones(value.shape, bool), value)


def nothing(ndim: int, dtype: Any) -> Known:
    """Nothing is known."""
    try:
        value = np.zeros((1,) * ndim, dtype)
    except TypeError:  # random keys and other extended types
        value = np.zeros((1,) * ndim, np.uint8)
    return Known(np.zeros((1,) * ndim, bool), value)


def zeros(flags: Array, dtype: Any) -> Known:
    """Known where ``flags`` say so, and there 0."""
    return Known(flags, np.zeros(flags.shape, dtype))


def elementwise(
    primitive: Any, params: Any, known: list[Known], ndim: int, dtype: Any
) -> Known:
    """The constants that an elementwise operation makes of constants."""
    name = primitive.name
    shape = np.broadcast_shapes(*(k.flags.shape for k in known), (1,) * ndim)
    flags = np.ones(shape, bool)
    for k in known:
        flags = flags & k.flags
    if name in ("mul", "and"):
        zero = known[0].zero | known[1].zero
    elif name in ("div", "rem"):
        zero = known[0].zero  # 0/0 is not finite, and neither is the model then
    elif name == "select_n":
        flags, zero = _select(known, flags)
    else:
        zero = np.zeros(shape, bool)
    zero = np.broadcast_to(zero, shape)
    flags = np.broadcast_to(flags, shape) | zero
    if not flags.any():
        return nothing(ndim, dtype)
    if (zero == flags).all():
        return zeros(flags, dtype)
    # One at a time all operands have the same rank, or none.
    inputs = [
        np.broadcast_to(k.value, shape) if k.value.ndim else k.value
        for k in known
    ]
    value = _computed(primitive, params, inputs)
    return Known(flags, np.where(flags & ~zero, value, np.zeros_like(value)))


# What is the same in NumPy is computed there: dispatch takes ten times as long.
_NUMPY = {
    "add": np.add,
    "add_any": np.add,
    "max": np.maximum,
    "min": np.minimum,
    "mul": np.multiply,
    "neg": np.negative,
    "sub": np.subtract,
}


def _computed(primitive: Any, params: Any, inputs: list[Array]) -> Array:
    fn = _NUMPY.get(primitive.name)
    if fn is not None and len({x.dtype for x in inputs}) == 1:
        with np.errstate(all="ignore"):
            return np.asarray(fn(*inputs))
    with jax.ensure_compile_time_eval():
        xs = map(jax.numpy.asarray, inputs)
        return np.asarray(primitive.bind(*xs, **params))


def _select(known: list[Known], flags: Array) -> tuple[Array, Array]:
    """Where all cases are 0 it does not matter which is taken."""
    zero = known[1].zero
    for case in known[2:]:
        zero = zero & case.zero
    return flags, zero


def matmul(a: Known, b: Known, nonzero: Array, dtype: Any) -> Known:
    """``[..., m, k] @ [..., k, n]``: known if every product is.

    ``nonzero`` says which of ``b`` can't be counted as 0.
    """
    unknown = _any(~a.flags, nonzero) | _any(~a.zero, ~b.flags)
    if unknown.all() or not (a.value.any() and b.value.any()):
        return zeros(~unknown, dtype)
    real = np.result_type(dtype, np.float64)
    value = a.value.astype(real) @ b.value.astype(real)
    return Known(~unknown, np.where(unknown, 0, value).astype(dtype))


def _any(a: Array, b: Array) -> Array:
    """``any_k(a[..., m, k] & b[..., k, n])``."""
    shape = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    if not (a.any() and b.any()):
        return np.zeros((*shape, a.shape[-2], b.shape[-1]), bool)
    if a.shape[:2] == (1, 1) and len(shape) == 1:  # a vector: no floats needed
        rows = b if a.all() else b[:, a[0, 0]]
        return rows.any(1, keepdims=True)
    return np.matmul(a.astype(np.float32), b.astype(np.float32)) > 0


def along(known: Known, axes: Sequence[int], dtype: Any) -> Known:
    """0 wherever all entries along ``axes`` are."""
    flags = known.zero
    for axis in axes:
        flags = flags.all(axis, keepdims=True)
    return zeros(flags, dtype)


def total(
    known: Known, axes: Sequence[int], shape: Sequence[int], dtype: Any
) -> Known:
    """The sum along ``axes``, which it removes."""
    axes = tuple(axes)
    times = math.prod(
        shape[axis] // known.flags.shape[axis]
        for axis in axes
        if known.flags.shape[axis]
    )
    flags = known.flags.all(axis=axes)
    value = known.value.sum(axis=axes) * times
    return Known(flags, np.where(flags, value, 0).astype(dtype))
