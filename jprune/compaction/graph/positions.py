"""Rules of operations that move positions or look them up."""

from typing import Any

import numpy as np

from jprune.compaction.graph import constants as constants
from jprune.compaction.graph.constants import Array
from jprune.compaction.graph.ids import merge
from jprune.compaction.graph.walk import Value, Walk, rule, unknown
from jprune.jaxprs.shapes import groups


@rule("reshape")
def reshape(walk: Walk, eqn: Any, ins: list[Value]) -> list[Value]:
    """Axes that are merged become factors, axes that are split get them."""
    x, shape = ins[0], eqn.outvars[0].aval.shape
    if eqn.params["dimensions"] is not None or 0 in x.shape or len(ins) > 1:
        return unknown(walk, eqn, ins)
    ids: list[Array | None] = [None] * len(shape)
    known, sizes = x.known, [1] * len(shape)
    for old, new in groups(x.shape, shape):
        real = [k for k in old if x.shape[k] > 1]
        goal = [k for k in new if shape[k] > 1]
        if len(old) != 1 or len(new) != 1:
            for k in old:
                if x.shape[k] == 1:
                    walk.freeze("reshape: a size-1 axis", x.ids[k])
        elif old and new:
            ids[new[0]] = x.ids[old[0]]
            sizes[new[0]] = known.shape[old[0]]
            continue
        if any(known.shape[k] > 1 for k in real):
            known = known.spread(real, x.shape)
            for k in goal:
                sizes[k] = shape[k]
        if any(x.ids[k] is not None for k in real):
            axes = [or_new(walk, x, k) for k in real]
            whole = merge(axes) if len(axes) > 1 else axes[0]
            sizes_of = tuple(shape[k] for k in goal)
            parts = [whole]
            if len(goal) > 1:
                why = "reshape: not a product of axes"
                parts = walk.ids.split(whole, sizes_of, why)
            for k, part in zip(goal, parts, strict=True):
                ids[k] = part
    known = known.map(lambda a: a.reshape(sizes))
    return [Value(shape, tuple(ids), known, x.leaf)]


def or_new(walk: Walk, x: Value, axis: int) -> Array:
    ids = x.ids[axis]
    return walk.ids.new(x.shape[axis]) if ids is None else ids


@rule("broadcast_in_dim")
def broadcast_in_dim(walk: Walk, eqn: Any, ins: list[Value]) -> list[Value]:
    """New axes hold the same everywhere, and can be of any size."""
    x, shape = ins[0], eqn.outvars[0].aval.shape
    if len(ins) > 1:
        return unknown(walk, eqn, ins)
    ids: list[Array | None] = [None] * len(shape)
    sizes = [1] * len(shape)
    for axis, to in enumerate(eqn.params["broadcast_dimensions"]):
        sizes[to] = x.known.shape[axis]
        if x.shape[axis] == shape[to]:
            ids[to] = x.ids[axis]
        else:
            walk.freeze("broadcast_in_dim: a size-1 axis", x.ids[axis])
    known = x.known.map(lambda a: a.reshape(sizes))
    return [Value(shape, tuple(ids), known, x.leaf)]


@rule("squeeze")
def squeeze(walk: Walk, eqn: Any, ins: list[Value]) -> list[Value]:
    """Axes of one position go, and that position must stay."""
    (x,), axes = ins, eqn.params["dimensions"]
    walk.freeze("squeeze", *(x.ids[k] for k in axes))
    ids = tuple(s for k, s in enumerate(x.ids) if k not in axes)
    known = x.known.map(lambda a: a.squeeze(axes))
    return [Value(eqn.outvars[0].aval.shape, ids, known, x.leaf)]


@rule("transpose")
def transpose(walk: Walk, eqn: Any, ins: list[Value]) -> list[Value]:
    """Axes change places."""
    del walk  # nothing is coupled
    (x,), order = ins, eqn.params["permutation"]
    ids = tuple(x.ids[k] for k in order)
    known = x.known.map(lambda a: a.transpose(order))
    return [Value(eqn.outvars[0].aval.shape, ids, known)]


@rule("rev")
def rev(walk: Walk, eqn: Any, ins: list[Value]) -> list[Value]:
    """Positions change places."""
    del walk  # nothing is coupled
    (x,), axes = ins, eqn.params["dimensions"]
    ids = tuple(
        s[::-1] if k in axes and s is not None else s
        for k, s in enumerate(x.ids)
    )
    return [Value(x.shape, ids, x.known.map(lambda a: np.flip(a, axes)))]


@rule("gather")
def gather(walk: Walk, eqn: Any, ins: list[Value]) -> list[Value]:
    """Axes that are taken whole pass; those that are looked up stay."""
    (x, indices), aval = ins, eqn.outvars[0].aval
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    if numbers.operand_batching_dims:
        return unknown(walk, eqn, ins)
    passing = [
        k for k in range(len(x.shape)) if k not in numbers.collapsed_slice_dims
    ]
    whole = [
        k
        for k in passing
        if sizes[k] == x.shape[k] and k not in numbers.start_index_map
    ]
    looked_up = [k for k in range(len(x.shape)) if k not in whole]
    walk.freeze("gather: the axis is looked up", *(x.ids[k] for k in looked_up))
    walk.freeze("gather: indices", indices.ids[-1])
    zero = constants.along(x.known, looked_up, aval.dtype)
    ids: list[Array | None] = [None] * len(aval.shape)
    flags = [1] * len(aval.shape)
    batch = iter(indices.ids[:-1])
    for k in range(len(aval.shape)):
        if k not in numbers.offset_dims:
            ids[k] = next(batch)
    for k, to in zip(passing, numbers.offset_dims, strict=True):
        if k in whole:
            ids[to] = x.ids[k]
            flags[to] = zero.shape[k]
        else:
            ids[to] = walk.ids.new(sizes[k], "gather: the axis is looked up")
    return [Value(aval.shape, tuple(ids), zero.map(lambda a: a.reshape(flags)))]


@rule("dynamic_slice")
def dynamic_slice(walk: Walk, eqn: Any, ins: list[Value]) -> list[Value]:
    """Axes that are taken whole pass."""
    x, aval = ins[0], eqn.outvars[0].aval
    why = "dynamic_slice: positions are chosen at run time"
    part = [k for k, n in enumerate(aval.shape) if n != x.shape[k]]
    walk.freeze(why, *(x.ids[k] for k in part))
    ids = list(x.ids)
    for k in part:
        ids[k] = walk.ids.new(aval.shape[k], why)
    known = constants.along(x.known, part, aval.dtype)
    return [Value(aval.shape, tuple(ids), known)]


@rule("dynamic_update_slice")
def dynamic_update_slice(walk: Walk, eqn: Any, ins: list[Value]) -> list[Value]:
    """Axes that are written whole are aligned."""
    x, update = ins[:2]
    why = "dynamic_update_slice: positions are chosen at run time"
    ids = list(x.ids)
    part = [k for k, n in enumerate(x.shape) if n != update.shape[k]]
    for k in range(len(x.shape)):
        if k in part:
            walk.freeze(why, x.ids[k], update.ids[k])
            ids[k] = walk.ids.new(x.shape[k], why)
        else:
            ids[k] = walk.join("dynamic_update_slice", x.ids[k], update.ids[k])
    dtype = eqn.outvars[0].aval.dtype
    both = [constants.along(v.known, part, dtype).flags for v in (x, update)]
    return [
        Value(x.shape, tuple(ids), constants.zeros(both[0] & both[1], dtype))
    ]


@rule("sort")
def sort(walk: Walk, eqn: Any, ins: list[Value]) -> list[Value]:
    """Positions of the sorted axis change places at run time."""
    axis = eqn.params["dimension"]
    walk.freeze("sort over the axis", *(v.ids[axis] for v in ins))
    ids = tuple(
        walk.join("sort", *(v.ids[k] for v in ins))
        for k in range(len(ins[0].shape))
    )
    return [
        Value(v.shape, ids, constants.along(v.known, [axis], v.known.dtype))
        for v in ins
    ]


@rule("top_k")
def top_k(walk: Walk, eqn: Any, ins: list[Value]) -> list[Value]:
    """What is removed could have been among the best."""
    (x,), outs = ins, []
    walk.freeze("top_k over the axis", x.ids[-1])
    for var in eqn.outvars:
        ids = (*x.ids[:-1], None)
        known = constants.nothing(len(x.shape), var.aval.dtype)
        outs.append(Value(var.aval.shape, ids, known))
    return outs


@rule("reduce_window_max", "reduce_window_min", "reduce_window_sum")
def reduce_window(walk: Walk, eqn: Any, ins: list[Value]) -> list[Value]:
    """Axes without a window pass."""
    (x,), aval, p = ins, eqn.outvars[0].aval, eqn.params
    why = f"{eqn.primitive.name}: windows over the axis"
    ids, moved = list(x.ids), []
    for k, n in enumerate(x.shape):
        if p["window_dimensions"][k] != 1 or aval.shape[k] != n:
            moved.append(k)
            walk.freeze(why, x.ids[k])
            ids[k] = walk.ids.new(aval.shape[k], why)
    known = constants.along(x.known, moved, aval.dtype)
    return [Value(aval.shape, tuple(ids), known)]
