"""Axes that are merged and split."""

from typing import Any

from jprune.compaction.graph.axes import by_axes
from jprune.compaction.graph.constants import Array, along
from jprune.compaction.graph.ids import merge
from jprune.compaction.graph.moves import or_new
from jprune.compaction.graph.walk import Value, Walk, rule, unknown
from jprune.jaxprs.primitives.moves import reshape_of_nothing as record_of
from jprune.jaxprs.shapes import groups, is_number


@rule("reshape")
def reshape(walk: Walk, eqn: Any, ins: list[Value]) -> list[Value]:
    """Axes that are merged become factors, axes that are split get them."""
    x, shape = ins[0], eqn.outvars[0].aval.shape
    if (record := record_of(eqn)) is not None:
        return by_axes(walk, eqn, ins, record)
    if eqn.params["dimensions"] is not None or len(ins) > 1:
        return unknown(walk, eqn, ins)
    ids: list[Array | None] = [None] * len(shape)
    known, sizes = x.known, [1] * len(shape)
    for old, new in groups(x.shape, shape):
        if len(old) == len(new) == 1:
            ids[new[0]] = x.ids[old[0]]
            sizes[new[0]] = known.shape[old[0]]
            continue
        if not all(map(is_number, (x.shape[k] for k in old))):
            why = "reshape: together with an axis of symbolic size"
            walk.freeze(why, *(x.ids[k] for k in old))
            for k in new:
                ids[k] = walk.new(shape[k], why)
            if any(known.shape[k] > 1 for k in old):
                known = along(known, old, known.dtype)
            continue
        real = [k for k in old if x.shape[k] > 1]
        goal = [k for k in new if shape[k] > 1]
        for k in old:
            if x.shape[k] == 1:
                walk.freeze("reshape: a size-1 axis", x.ids[k])
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
