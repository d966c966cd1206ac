"""What projections share: scales against overflow, leaves as matrices."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jprune._layout import check_axes, place_axes
from jprune._trees import path_name


def scale_of(largest: jax.Array) -> jax.Array:
    """The factor that brings entries up to ``largest`` near one.

    A power of two, so that scaling is exact; a factor and no divisor, as XLA
    divides by multiplying with a reciprocal, which may be subnormal.
    """
    _, exponent = jnp.frexp(jax.lax.stop_gradient(largest))
    least = jnp.finfo(largest.dtype).minexp
    exponent = jnp.clip(1 - exponent, least, -least)
    return jnp.ldexp(jnp.ones((), largest.dtype), exponent)


class Axes(NamedTuple):
    """The axes of one leaf, read as matrices ``[batch, rows, columns]``."""

    batch: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]


def axes_of(
    call: str,
    path: Any,
    ndim: int,
    out_axis: int | Sequence[int],
    batch_axis: int | Sequence[int],
) -> Axes:
    """Columns are outputs, rows all inputs; a vector is one column.

    Raises:
      ValueError: An axis is no integer, out of range or taken twice; the leaf
        is named.
    """

    def counted(name: str, axes: int | Sequence[int]) -> tuple[int, ...]:
        given = check_axes(call, **{name: axes})
        return place_axes(call, path, ndim, given)[0]

    batch = counted("batch_axis", batch_axis)
    rest = tuple(axis for axis in range(ndim) if axis not in batch)
    if len(rest) < 2:
        return Axes(batch, rest, ())
    columns = counted("out_axis", out_axis)
    if set(columns) & set(batch):
        raise ValueError(
            f"`{call}(out_axis={out_axis}, batch_axis={batch_axis})` share an "
            f"axis of {path_name(path)!r} with {ndim} axes."
        )
    rows = tuple(axis for axis in rest if axis not in columns)
    return Axes(batch, rows, columns)
