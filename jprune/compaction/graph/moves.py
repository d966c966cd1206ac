"""What a record of moved positions says of units and of constants."""

from dataclasses import replace
from typing import Any

import numpy as np

from jprune.compaction.graph.constants import Array, Known
from jprune.compaction.graph.walk import DRIVERS, Value, Walk
from jprune.jaxprs.records import Moves


def by_moves(
    walk: Walk, eqn: Any, ins: list[Value], moves: Moves
) -> list[Value]:
    """The outputs of an equation, by its record."""
    name, filling = eqn.primitive.name, None
    if moves.filling is not None:
        filling = ins[moves.filling].known
        ins = [v for i, v in enumerate(ins) if i != moves.filling]
    if moves.added is not None:
        ins = [_with_axis(v, moves.added) for v in ins]
    if moves.dropped is not None:
        walk.freeze(name, ins[0].ids[moves.dropped])
    outs = []
    for taken in moves.outs:
        one = _side_by_side(walk, name, ins, taken)
        for axis, places in taken.items():
            one = _take(walk, name, one, axis, places, filling)
        if moves.dropped is not None:
            one = _without_axis(one, moves.dropped)
        outs.append(one)
    return outs


DRIVERS[Moves] = by_moves


def _with_axis(v: Value, axis: int) -> Value:
    shape = (*v.shape[:axis], 1, *v.shape[axis:])
    ids = (*v.ids[:axis], None, *v.ids[axis:])
    return Value(shape, ids, v.known.map(lambda a: np.expand_dims(a, axis)))


def _without_axis(v: Value, axis: int) -> Value:
    shape, ids = list(v.shape), list(v.ids)
    del shape[axis], ids[axis]
    known = v.known.map(lambda a: a.squeeze(axis))
    return Value(tuple(shape), tuple(ids), known)


def _side_by_side(
    walk: Walk, name: str, ins: list[Value], taken: dict[int, Array]
) -> Value:
    """Operands one after the other; the other axes are aligned."""
    if len(ins) == 1:
        return replace(ins[0], leaf=None, site=None)
    (axis,), rank = taken, len(ins[0].shape)
    lengths = [v.shape[axis] for v in ins]
    shape = list(ins[0].shape)
    shape[axis] = sum(lengths)
    ids = [
        None if k == axis else walk.join(name, *(v.ids[k] for v in ins))
        for k in range(rank)
    ]
    if any(v.ids[axis] is not None for v in ins):
        ids[axis] = _chain([or_new(walk, v, axis) for v in ins])
    known = [v.known.spread([axis], v.shape) for v in ins]
    for k in range(rank):
        if k != axis and len({x.shape[k] for x in known}) > 1:
            known = [x.spread([k], shape) for x in known]
    flags = np.concatenate([x.flags for x in known], axis)
    value = np.concatenate([x.value for x in known], axis)
    return Value(tuple(shape), tuple(ids), Known(flags, value))


def _chain(parts: list[Array]) -> Array:
    width = max(x.shape[1] for x in parts)
    return np.concatenate(
        [np.pad(x, ((0, 0), (0, width - x.shape[1]))) for x in parts]
    )


def or_new(walk: Walk, x: Value, axis: int) -> Array:
    ids = x.ids[axis]
    return walk.ids.new(x.shape[axis]) if ids is None else ids


def _take(
    walk: Walk,
    name: str,
    x: Value,
    axis: int,
    places: Array,
    filling: Known | None,
) -> Value:
    """Some positions of one axis; -1 is the filling, which stays."""
    n, m = x.shape[axis], len(places)
    if n == m and (places == np.arange(n)).all():
        return x
    shape = (*x.shape[:axis], m, *x.shape[axis + 1 :])
    filled = places < 0
    ids, here = list(x.ids), x.ids[axis]
    if n == 1 and m > 1 and not filled.any():
        # One position can't be lost and be everywhere.
        walk.freeze(f"{name}: a size-1 axis", here)
        ids[axis] = None
    elif here is not None:
        line = _chain([here, walk.ids.new(int(filled.sum()), name)])
        at = np.where(filled, n + np.cumsum(filled) - 1, places)
        ids[axis] = line[at]
    known = x.known
    if known.shape[axis] > 1 or filled.any():
        known = known.spread([axis], x.shape)
        known = known.map(lambda a: a.take(places * ~filled, axis) if n else a)
    if filled.any() and filling is not None:
        known = _filled(known, axis, filled, n, filling)
    return Value(shape, tuple(ids), known)


def _filled(
    known: Known, axis: int, filled: Array, n: int, filling: Known
) -> Known:
    """The constant of the filling in its places."""
    line = [1] * len(known.shape)
    line[axis] = len(filled)
    here = filled.reshape(line)
    flags, value = known.flags, known.value
    if n == 0:  # there was nothing before
        sizes = list(known.shape)
        sizes[axis] = len(filled)
        flags, value = np.zeros(sizes, bool), np.zeros(sizes, value.dtype)
    return Known(
        np.where(here, filling.flags, flags),
        np.where(here, filling.value, value),
    )
