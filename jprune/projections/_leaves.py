"""What projections share: leaves as matrices."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from jprune._core.layout import check_axes, place_axes
from jprune._core.trees import path_name


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
