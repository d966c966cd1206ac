"""Rules of operations that put positions side by side, or cut some out."""

import itertools
from typing import Any

import numpy as np

from jprune.compaction.graph.constants import Array, Known
from jprune.compaction.graph.positions import or_new
from jprune.compaction.graph.walk import Value, Walk, rule, unknown


@rule("concatenate")
def concatenate(walk: Walk, eqn: Any, ins: list[Value]) -> list[Value]:
    """Positions one after the other; the other axes are aligned."""
    return [_joined(walk, eqn, ins, eqn.params["dimension"])]


@rule("stack")
def stack(walk: Walk, eqn: Any, ins: list[Value]) -> list[Value]:
    """The same along an axis that is new."""
    axis, added = eqn.params["axis"], []
    for v in ins:
        shape = (*v.shape[:axis], 1, *v.shape[axis:])
        ids = (*v.ids[:axis], None, *v.ids[axis:])
        known = v.known.map(lambda a: np.expand_dims(a, axis))
        added.append(Value(shape, ids, known))
    return [_joined(walk, eqn, added, axis)]


def _joined(walk: Walk, eqn: Any, ins: list[Value], axis: int) -> Value:
    shape = eqn.outvars[0].aval.shape
    ids: list[Array | None] = [
        None
        if k == axis
        else walk.join(eqn.primitive.name, *(v.ids[k] for v in ins))
        for k in range(len(shape))
    ]
    if any(v.ids[axis] is not None for v in ins):
        ids[axis] = _chain([or_new(walk, v, axis) for v in ins])
    known = [v.known.spread([axis], v.shape) for v in ins]
    for k in range(len(shape)):
        if k != axis and len({x.shape[k] for x in known}) > 1:
            known = [x.spread([k], shape) for x in known]
    flags = np.concatenate([x.flags for x in known], axis)
    value = np.concatenate([x.value for x in known], axis)
    return Value(shape, tuple(ids), Known(flags, value))


def _chain(parts: list[Array]) -> Array:
    width = max(x.shape[1] for x in parts)
    return np.concatenate(
        [np.pad(x, ((0, 0), (0, width - x.shape[1]))) for x in parts]
    )


def _cut(x: Value, axis: int, index: slice) -> Value:
    """Some positions of one axis."""
    ids = list(x.ids)
    here = ids[axis]
    ids[axis] = None if here is None else here[index]
    known = x.known
    if known.shape[axis] > 1:
        known = known.map(lambda a: a[(slice(None),) * axis + (index,)])
    n = len(range(*index.indices(x.shape[axis])))
    shape = (*x.shape[:axis], n, *x.shape[axis + 1 :])
    return Value(shape, tuple(ids), known)


@rule("slice")
def slice_(walk: Walk, eqn: Any, ins: list[Value]) -> list[Value]:
    """What lies outside is not read."""
    del walk  # nothing is coupled
    (x,), p = ins, eqn.params
    strides = p["strides"] or (1,) * len(x.shape)
    for axis, (start, stop, step) in enumerate(
        zip(p["start_indices"], p["limit_indices"], strides, strict=True)
    ):
        x = _cut(x, axis, slice(start, stop, step))
    return [x]


@rule("split")
def split(walk: Walk, eqn: Any, ins: list[Value]) -> list[Value]:
    """Slices that lie side by side."""
    del walk  # nothing is coupled
    axis, ends = eqn.params["axis"], np.cumsum([0, *eqn.params["sizes"]])
    return [
        _cut(ins[0], axis, slice(int(start), int(stop)))
        for start, stop in itertools.pairwise(ends)
    ]


@rule("unstack")
def unstack(walk: Walk, eqn: Any, ins: list[Value]) -> list[Value]:
    """One value for each position of an axis, which must stay."""
    (x,), axis = ins, eqn.params["axis"]
    walk.freeze("unstack", x.ids[axis])
    outs = []
    for place in range(x.shape[axis]):
        one = _cut(x, axis, slice(place, place + 1))
        shape, ids = list(one.shape), list(one.ids)
        del shape[axis], ids[axis]
        known = one.known.map(lambda a: a.squeeze(axis))
        outs.append(Value(tuple(shape), tuple(ids), known))
    return outs


@rule("tile")
def tile(walk: Walk, eqn: Any, ins: list[Value]) -> list[Value]:
    """The same positions several times over."""
    (x,), shape, ids = ins, eqn.outvars[0].aval.shape, list(ins[0].ids)
    reps = [1] * len(shape)
    for k, (n, many) in enumerate(zip(x.shape, shape, strict=True)):
        here = ids[k]
        if n == 1 and many > 1:
            walk.freeze("tile: a size-1 axis", here)
            ids[k] = None
        elif here is not None and n:
            ids[k] = np.tile(here, (many // n, 1))
        if x.known.shape[k] > 1:
            reps[k] = many // n
    return [Value(shape, tuple(ids), x.known.map(lambda a: np.tile(a, reps)))]


@rule("pad")
def pad(walk: Walk, eqn: Any, ins: list[Value]) -> list[Value]:
    """What is put around is there to stay."""
    (x, filling), shape = ins, eqn.outvars[0].aval.shape
    ids, known = list(x.ids), x.known
    for axis, (low, high, inside) in enumerate(eqn.params["padding_config"]):
        if not (low or high or inside):
            continue
        if low < 0 or high < 0 or inside:
            return unknown(walk, eqn, ins)
        here = ids[axis]
        if here is not None:
            ends = [walk.ids.new(n, "pad") for n in (low, high)]
            ids[axis] = _chain([ends[0], here, ends[1]])
        known = known.spread([axis], x.shape)
        ends_of = [(0, 0)] * len(shape)
        ends_of[axis] = (low, high)
        known = Known(
            np.pad(known.flags, ends_of, constant_values=filling.known.flags),
            np.pad(known.value, ends_of, constant_values=filling.known.value),
        )
    return [Value(shape, tuple(ids), known)]
