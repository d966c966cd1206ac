"""Records of what is read or written at positions that run time chooses."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax.lax import GatherScatterMode

from jprune.jaxprs.records import (
    Axes,
    Places,
    aligned,
    record,
    shapes_of,
    whole_axes,
)
from jprune.jaxprs.versions import applies


@record("dynamic_slice")
def dynamic_slice(eqn: Any) -> Axes:
    """Axes that are taken whole pass."""
    shape, sizes = shapes_of(eqn)[0], eqn.params["slice_sizes"]
    part = [k for k, n in enumerate(sizes) if n != shape[k]]

    def params(size: Any) -> dict[str, Any]:
        left = (n if k in part else size(0, k) for k, n in enumerate(sizes))
        return {"slice_sizes": tuple(left)}

    return Axes(
        [aligned(eqn, changed=part)],
        whole=whole_axes(0, part),
        why="dynamic_slice: positions are chosen at run time",
        zero=[[0]],
        params=params,
    )


@record("dynamic_update_slice")
def dynamic_update_slice(eqn: Any) -> Axes:
    """Axes that are written whole are aligned."""
    shape, update = shapes_of(eqn)[:2]
    part = [k for k, n in enumerate(shape) if n != update[k]]
    return Axes(
        [aligned(eqn, (0, 1), changed=part)],
        whole=[(i, k) for i in (0, 1) for k in part],
        why="dynamic_update_slice: positions are chosen at run time",
        zero=[[0, 1]],
    )


@record("gather")
def gather(eqn: Any) -> Axes:
    """Axes that are taken whole pass; those that are looked up stay."""
    p, (shape, indices) = eqn.params, shapes_of(eqn)
    numbers, sizes = p["dimension_numbers"], p["slice_sizes"]
    batch = _batching(numbers, numbers.start_indices_batching_dims)
    gone = {*numbers.collapsed_slice_dims, *batch}
    looked_up = numbers.start_index_map
    passing = _passing(p["mode"], shape, sizes, looked_up, gone)
    outs: list[Places | None] = [None] * len(eqn.outvars[0].aval.shape)
    kept = [k for k in range(len(shape)) if k not in gone]
    for k, to in zip(kept, numbers.offset_dims, strict=True):
        outs[to] = ((0, k),) if k in passing else None
    of_index = {i: k for k, i in batch.items()}
    rest = [to for to in range(len(outs)) if to not in numbers.offset_dims]
    for axis, to in enumerate(rest):
        alike = ((0, of_index[axis]),) if axis in of_index else ()
        outs[to] = (*alike, (1, axis))
    chosen = [k for k in range(len(shape)) if k not in {*passing, *batch}]

    def params(size: Any) -> dict[str, Any]:
        left = (size(0, k) if k in passing else n for k, n in enumerate(sizes))
        return {"slice_sizes": tuple(left)}

    return Axes(
        [outs],
        whole=[*whole_axes(0, chosen), (1, len(indices) - 1)],
        why="gather: the axis is looked up",
        zero=[[] if _fills(eqn) else [0]],
        params=params,
    )


@record(
    *("scatter", "scatter-add", "scatter-sub", "scatter-mul"),
    *("scatter-min", "scatter-max"),
)
def scatter(eqn: Any) -> Axes:
    """Axes that are written whole are aligned; positions of others stay."""
    p, (shape, indices, updates) = eqn.params, shapes_of(eqn)
    numbers, name = p["dimension_numbers"], eqn.primitive.name
    batch = _batching(numbers, numbers.scatter_indices_batching_dims)
    gone = {*numbers.inserted_window_dims, *batch}
    windows = dict(
        zip(
            (k for k in range(len(shape)) if k not in gone),
            numbers.update_window_dims,
            strict=True,
        )
    )
    sizes = [
        updates[windows[k]] if k in windows else 1 for k in range(len(shape))
    ]
    passing = _passing(
        p["mode"],
        shape,
        sizes,
        numbers.scatter_dims_to_operand_dims,
        {*range(len(shape))} - {*windows},
    )
    # The axes of the updates that are no windows are those of the indices.
    rest = [k for k in range(len(updates)) if k not in windows.values()]
    outs: list[Places | None] = [None] * len(shape)
    for k in passing:
        outs[k] = ((0, k), (2, windows[k]))
    for k, axis in batch.items():
        outs[k] = ((0, k), (1, axis), (2, rest[axis]))
    found = {place for places in outs for place in places or ()}
    whole = [
        (i, k)
        for i, size in enumerate((shape, indices, updates))
        for k in range(len(size))
        if (i, k) not in found
    ]
    applied = name == "scatter" and applies(eqn)
    return Axes(
        [outs],
        whole=whole,
        why=f"{name}: positions are chosen at run time",
        zero=[[] if applied else [0, 2]],
    )


def _fills(eqn: Any) -> bool:
    """Whether what lies out of bounds is another number than 0 (or NaN)."""
    value = eqn.params["fill_value"]
    if eqn.params["mode"] != GatherScatterMode.FILL_OR_DROP:
        return False
    if value is None:  # NaN, or the least integer
        return not jnp.issubdtype(eqn.outvars[0].aval.dtype, jnp.inexact)
    return bool(value == value and value != 0)


def _batching(numbers: Any, of_indices: Sequence[int]) -> dict[int, int]:
    """Axes of the operand that go with one of the indices."""
    return dict(zip(numbers.operand_batching_dims, of_indices, strict=True))


def _passing(
    mode: Any,
    shape: Sequence[int],
    sizes: Sequence[int],
    looked_up: Sequence[int],
    others: set[int],
) -> list[int]:
    """Axes of the operand of which every window is the whole.

    Where windows start is then one index alone, to which JAX may clip: else a
    start beyond it would drop the window.
    """
    clipped = mode in (
        GatherScatterMode.CLIP,
        GatherScatterMode.PROMISE_IN_BOUNDS,
    )
    return [
        k
        for k, n in enumerate(shape)
        if sizes[k] == n and k not in others and (clipped or k not in looked_up)
    ]
