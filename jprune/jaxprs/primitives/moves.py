"""Records of what moves entries and computes nothing."""

import itertools
from typing import Any

import numpy as np

from jprune.jaxprs.records import (
    VIEW,
    Axes,
    Moves,
    Places,
    Record,
    record,
    shapes_of,
    whole_axes,
)


@record("broadcast_in_dim")
def broadcast_in_dim(eqn: Any) -> Record:
    """New axes hold the same everywhere, and can be of any size."""
    if len(eqn.invars) > 1:  # a shape that is known at run time
        return None
    (old,), new = shapes_of(eqn), eqn.outvars[0].aval.shape
    outs: list[Places] = [()] * len(new)
    whole = []
    for axis, to in enumerate(eqn.params["broadcast_dimensions"]):
        if old[axis] == new[to]:
            outs[to] = ((0, axis),)
        else:
            whole.append((0, axis))
    why = "broadcast_in_dim: a size-1 axis"
    return Axes([outs], whole=whole, why=why, form=VIEW)


@record("squeeze")
def squeeze(eqn: Any) -> Axes:
    """Axes of one position go, and that position must stay."""
    (shape,), gone = shapes_of(eqn), eqn.params["dimensions"]
    outs = [((0, k),) for k in range(len(shape)) if k not in gone]
    whole = whole_axes(0, gone)
    return Axes([outs], whole=whole, why="squeeze", form=VIEW)


@record("transpose")
def transpose(eqn: Any) -> Axes:
    """Axes change places."""
    outs = [((0, k),) for k in eqn.params["permutation"]]
    return Axes([outs], form=VIEW)


@record("reshape")
def reshape_of_nothing(eqn: Any) -> Axes | None:
    """Of an array without entries: whatever axes still look alike.

    Others are told where axes are merged and split.
    """
    (old, *more), new = shapes_of(eqn), eqn.outvars[0].aval.shape
    if more or eqn.params["dimensions"] is not None or 0 not in old:
        return None
    outs: list[Places] = [()] * len(new)
    for k in range(1, min(len(old), len(new)) + 1):
        if old[-k] != new[-k]:
            break
        outs[-k] = ((0, len(old) - k),)

    def params(size: Any) -> dict[str, Any]:
        sizes = (
            size(*p[0]) if p else n for p, n in zip(outs, new, strict=True)
        )
        return {"new_sizes": tuple(sizes)}

    return Axes([outs], zero=[[0]], params=params)


@record("concatenate")
def concatenate(eqn: Any) -> Moves:
    """Positions one after the other."""
    axis = eqn.params["dimension"]
    return Moves([{axis: np.arange(eqn.outvars[0].aval.shape[axis])}])


@record("stack")
def stack(eqn: Any) -> Moves:
    """Operands side by side, along an axis that is new."""
    axis = eqn.params["axis"]
    return Moves([{axis: np.arange(len(eqn.invars))}], added=axis)


@record("unstack")
def unstack(eqn: Any) -> Moves:
    """One output for each position of an axis."""
    axis = eqn.params["axis"]
    outs = [{axis: np.array([k])} for k in range(len(eqn.outvars))]
    return Moves(outs, dropped=axis)


@record("rev")
def rev(eqn: Any) -> Moves:
    """The last position first."""
    (shape,) = shapes_of(eqn)
    axes = eqn.params["dimensions"]
    return Moves([{k: np.arange(shape[k])[::-1] for k in axes}])


@record("slice")
def slice_(eqn: Any) -> Moves:
    """What lies outside is not read."""
    (shape,), p = shapes_of(eqn), eqn.params
    starts, strides = p["start_indices"], p["strides"] or (1,) * len(shape)
    stops = p["limit_indices"]
    ranges = list(zip(starts, stops, strides, strict=True))
    taken = {
        k: np.arange(*ranges[k])
        for k, n in enumerate(shape)
        if ranges[k] != (0, n, 1)
    }

    def params(size: Any) -> dict[str, Any]:
        rest = {k for k in range(len(shape)) if k not in taken}
        limits = (size(0, k) if k in rest else n for k, n in enumerate(stops))
        return {"limit_indices": tuple(limits)}

    return Moves([taken], params=params)


@record("split")
def split(eqn: Any) -> Moves:
    """Slices that lie side by side."""
    axis, sizes = eqn.params["axis"], eqn.params["sizes"]
    ends = itertools.pairwise(np.cumsum([0, *sizes]))
    return Moves([{axis: np.arange(start, stop)} for start, stop in ends])


@record("tile")
def tile(eqn: Any) -> Moves:
    """The same positions several times over."""
    (shape,) = shapes_of(eqn)
    out = eqn.outvars[0].aval.shape
    return Moves(
        [
            {
                k: np.tile(np.arange(n), out[k] // n)
                for k, n in enumerate(shape)
                if n and n != out[k]
            }
        ]
    )


@record("pad")
def pad(eqn: Any) -> Moves:
    """What is put around and between is there to stay."""
    shape, moves = shapes_of(eqn)[0], {}
    for axis, (low, high, inside) in enumerate(eqn.params["padding_config"]):
        n = shape[axis]
        if not (low or high or (inside and n > 1)):
            continue
        line = np.full(max(n + inside * (n - 1), 0), -1)
        line[:: inside + 1] = np.arange(n)
        line = np.pad(line, (max(low, 0), max(high, 0)), constant_values=-1)
        moves[axis] = line[max(-low, 0) : len(line) - max(-high, 0)]
    return Moves([moves], filling=1)
