"""What is known about a value before any input is seen: its constants.

An axis along which nothing varies has size 1 here, whatever its size is; so a
bias stays a vector after it was broadcast to a batch.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jprune.jaxprs.shapes import is_number
from jprune.jaxprs.versions import bind

_BLOCK = 2**20  # entries that are converted at a time

Array: TypeAlias = Any  # of NumPy; its stubs take reductions for scalars


class Known:
    """Which entries have one value for all inputs, and which value."""

    def __init__(self, flags: Array, value: Array) -> None:
        self._flags, self._value = flags, value

    @property
    def flags(self) -> Array:
        """Bool; broadcasts to the value's shape."""
        return self._flags

    @property
    def value(self) -> Array:
        """Of the shape of ``flags``; 0 where unknown."""
        return self._value

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of ``flags``."""
        return tuple(self._flags.shape)

    @property
    def dtype(self) -> Any:
        """Of the value."""
        return self._value.dtype

    @property
    def zero(self) -> Array:
        """Which entries are 0 for all inputs."""
        return self.flags & (self.value == 0)

    def spread(self, axes: Sequence[int], shape: Sequence[int]) -> "Known":
        """The same with some axes at their true size."""
        full = list(self.shape)
        for axis in axes:
            if is_number(shape[axis]):  # along a symbol nothing varies
                full[axis] = shape[axis]
        if tuple(full) == self.shape:
            return self
        return self.map(lambda x: np.broadcast_to(x, full))

    def map(self, fn: Any) -> "Known":
        """The same function, of shapes only, of both arrays."""
        return Known(fn(self.flags), fn(self.value))


class Stored(Known):
    """A parameter of which masks leave a part: all is known.

    Nothing of its size is held but the parameter itself, which is not copied,
    and masks, of which most repeat one row: the rest is made when it is asked
    for. Where values don't matter, only zeros are known.
    """

    def __init__(
        self, stored: Array | None, kept: Sequence[Array], dtype: Any
    ) -> None:
        self._stored, self._kept, self._dtype = stored, tuple(kept), dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the parameter."""
        some = self._kept[0] if self._stored is None else self._stored
        return tuple(some.shape)

    @property
    def dtype(self) -> Any:
        """That to which it was converted."""
        return self._dtype

    @property
    def flags(self) -> Array:
        """All of it, or where it is 0."""
        if self._stored is None:
            return self.zero
        return np.broadcast_to(True, self.shape)

    @property
    def value(self) -> Array:
        """0 where it is not kept."""
        if self._stored is None:
            return np.broadcast_to(np.zeros((), self._dtype), self.shape)
        value = self._stored
        if self._kept:
            value = np.where(
                self._all_kept(), value, np.zeros_like(value, shape=())
            )
        return value.astype(self._dtype, copy=False)

    @property
    def zero(self) -> Array:
        """What is not kept, or 0."""
        if self._stored is None:
            return ~self._all_kept()
        zero = self._stored == 0
        for kept in self._kept:
            np.logical_or(zero, ~kept, out=zero)
        return zero

    def _all_kept(self) -> Array:
        return functools.reduce(np.logical_and, self._kept)

    def map(self, fn: Any) -> "Stored":
        """The same function, of shapes only, of all that is held."""
        stored = None if self._stored is None else fn(self._stored)
        return Stored(stored, tuple(map(fn, self._kept)), self._dtype)

    def without(self, gone: Sequence[Array]) -> "Stored":
        """The same with more that is 0; each array repeats along some axes."""
        kept = [np.broadcast_to(~here, self.shape) for here in gone]
        return Stored(self._stored, (*self._kept, *kept), self._dtype)

    def to(self, dtype: Any) -> "Stored":
        """Converted to another precision."""
        return Stored(self._stored, self._kept, dtype)


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
    return Known(flags, np.broadcast_to(np.zeros((), dtype), flags.shape))


def elementwise(eqn: Any, known: list[Known], ndim: int, dtype: Any) -> Known:
    """The constants that an elementwise operation makes of constants."""
    name, first = eqn.primitive.name, known[0]
    if name == "convert_element_type" and isinstance(first, Stored):
        real = (jnp.issubdtype(x, jnp.floating) for x in (first.dtype, dtype))
        if all(real):
            return first.to(dtype)
    shape = np.broadcast_shapes(*(k.shape for k in known), (1,) * ndim)
    flags = np.ones(shape, bool)
    for k in known:
        flags = flags & k.flags
    if name in ("mul", "and"):
        zero = known[0].zero | known[1].zero
    elif name in ("div", "rem") and jnp.issubdtype(dtype, jnp.inexact):
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
    value = _computed(eqn, inputs)
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


def _computed(eqn: Any, inputs: list[Array]) -> Array:
    fn = _NUMPY.get(eqn.primitive.name)
    if fn is not None and len({x.dtype for x in inputs}) == 1:
        with np.errstate(all="ignore"):
            return np.asarray(fn(*inputs))
    with jax.ensure_compile_time_eval():
        xs = map(jax.numpy.asarray, inputs)
        return np.asarray(bind(eqn, list(xs)))


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
    # Constants are 0 but for those of dead units, which few columns see.
    if unknown.all() or not a.value.any():
        return zeros(~unknown, dtype)
    value = np.zeros(unknown.shape, dtype)
    real = np.result_type(dtype, np.float64)
    left = a.value.astype(real)
    rows = left.any((0, 1))
    for columns in _blocks(b.shape):
        part = b.map(lambda x, columns=columns: x[:, rows, columns])
        here = left[..., rows] @ part.value.astype(real)
        value[..., columns] = np.where(unknown[..., columns], 0, here)
    return Known(~unknown, value)


def _blocks(shape: Sequence[int]) -> Iterator[slice]:
    """Slices of the last axis, so that not all is converted at once."""
    step = max(_BLOCK // max(math.prod(shape[:-1]), 1), 1)
    for start in range(0, shape[-1], step):
        yield slice(start, start + step)


def _any(a: Array, b: Array) -> Array:
    """``any_k(a[..., m, k] & b[..., k, n])``."""
    shape = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    found = np.zeros((*shape, a.shape[-2], b.shape[-1]), bool)
    if not (a.any() and b.any()):
        return found
    if a.shape[:2] == (1, 1) and len(shape) == 1:  # a vector: no floats needed
        rows = b if a.all() else b[:, a[0, 0]]
        return rows.any(1, keepdims=True)
    floats = a.astype(np.float32)
    for columns in _blocks(b.shape):
        here = floats @ b[..., columns].astype(np.float32)
        found[..., columns] = here > 0
    return found


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
    if not all(is_number(shape[axis]) for axis in axes):
        return zeros(known.zero.all(axis=axes), dtype)
    times = math.prod(
        shape[axis] // known.shape[axis] for axis in axes if known.shape[axis]
    )
    flags = known.flags.all(axis=axes)
    value = known.value.sum(axis=axes) * times
    return Known(flags, np.where(flags, value, 0).astype(dtype))
