"""What is known of sums and of arithmetic: constants, and what adds to a sum."""

from dataclasses import replace
from typing import Any

import numpy as np

from jprune.compaction.graph import constants as constants
from jprune.compaction.graph.axes import Aligned, exact
from jprune.compaction.graph.constants import Array, Known, nothing
from jprune.compaction.graph.ids import merge
from jprune.compaction.graph.walk import (
    VIEWS,
    Multiplication,
    Value,
    Walk,
    free,
)
from jprune.jaxprs.primitives.pointwise import ELEMENTWISE, PLACEMENT
from jprune.jaxprs.shapes import entries, is_number


@exact(*ELEMENTWISE)
def elementwise(
    walk: Walk, eqn: Any, ins: list[Value], found: Aligned
) -> list[Value]:
    """Constants of constants; a parameter that is added may be a bias."""
    del walk
    name, aval = eqn.primitive.name, eqn.outvars[0].aval
    known = nothing(len(aval.shape), aval.dtype)
    if name != "name" and _plain(aval, ins):
        known = constants.elementwise(
            eqn, [v.known for v in ins], len(aval.shape), aval.dtype
        )
    if name in ("add", "add_any"):
        for x, y in (ins, ins[::-1]):
            if x.site is not None and y.leaf is not None:
                x.site.bias = (*y.leaf, y.known.shape)
    leaf = ins[0].leaf if name in VIEWS else None
    out = Value(aval.shape, found.outs[0], known, leaf)
    return [replace(out, cause=_cause(name, ins, out))]


def _cause(name: str, ins: list[Value], out: Value) -> str:
    """Why there is no 0 where operands had some: said where a sum meets it."""
    lost = [
        axis
        for v in ins
        if len(v.shape) == len(out.shape)
        for axis, size in enumerate(v.known.shape)
        if size > 1 and _lost(v.known.zero, out.known.zero, axis)
    ]
    if not lost:
        return ""
    if out.known.flags.any():
        return f"`{name}` puts a constant of the program there"
    if name == "sub" and any(map(_same_everywhere, ins, [out] * len(ins))):
        return (
            "`sub` takes one number from all positions there, as x - mean(x) "
            "in a variance of two passes"
        )
    return f"`{name}` makes it other than 0"


def _lost(before: Array, after: Array, axis: int) -> bool:
    """Whether something was 0 all along a position, and is no more."""
    rest = tuple(k for k in range(before.ndim) if k != axis)
    was = before.all(rest)
    return bool((was & ~after.all(rest)).any() and not was.all())


def _same_everywhere(x: Value, out: Value) -> bool:
    """Whether it repeats along an axis of units."""
    axes = zip(x.ids, out.ids, strict=bool(x.shape))
    return any(a is None and b is not None for a, b in axes)


def _plain(aval: Any, ins: list[Value]) -> bool:
    """Whether values are numbers: keys have constants that we don't follow."""
    return isinstance(aval.dtype, np.dtype) and all(
        len(v.known.shape) in (0, len(aval.shape)) for v in ins
    )


@exact(*PLACEMENT)
def placement(
    walk: Walk, eqn: Any, ins: list[Value], found: Aligned
) -> list[Value]:
    """The same values."""
    del walk, eqn, found
    return [Value(v.shape, v.ids, v.known) for v in ins]


@exact("iota")
def iota(walk: Walk, eqn: Any, ins: list[Value], found: Aligned) -> list[Value]:
    """Counts along one axis."""
    del walk, ins, found
    aval, axis = eqn.outvars[0].aval, eqn.params["dimension"]
    if not is_number(aval.shape[axis]):
        return [free(nothing(len(aval.shape), aval.dtype), aval.shape)]
    shape = [1] * len(aval.shape)
    shape[axis] = aval.shape[axis]
    known = constants.constant(np.arange(shape[axis], dtype=aval.dtype))
    return [free(known.map(lambda x: x.reshape(shape)), aval.shape)]


@exact("reduce_sum")
def reduce_sum(
    walk: Walk, eqn: Any, ins: list[Value], found: Aligned
) -> list[Value]:
    """The sum of constants."""
    (x,), axes = ins, eqn.params["axes"]
    aval, entries = eqn.outvars[0].aval, ~x.known.zero
    for axis, ids in zip(axes, found.summed, strict=True):
        rest = tuple(k for k in range(len(x.shape)) if k != axis)
        walk.sum(ids, entries.any(rest), "reduce_sum", ins)
    known = constants.total(x.known, axes, x.shape, aval.dtype)
    return [Value(aval.shape, found.outs[0], known)]


@exact("dot_general")
def dot_general(
    walk: Walk, eqn: Any, ins: list[Value], found: Aligned
) -> list[Value]:
    """A sum of products, some of which are constant."""
    (a, b), aval = ins, eqn.outvars[0].aval
    (over_a, over_b), (batch_a, batch_b) = eqn.params["dimension_numbers"]
    free_a = _others(a, over_a, batch_a)
    free_b = _others(b, over_b, batch_b)
    (ids,), over = found

    left = a.known.spread([*over_a], a.shape)
    if not all(is_number(a.shape[i]) for i in over_a):
        left = constants.zeros(left.zero, left.dtype)  # how often is not known
    right = b.known.spread([*over_b], b.shape)
    for i, j in zip(batch_a, batch_b, strict=True):
        if left.shape[i] != right.shape[j]:
            left = left.spread([i], a.shape)
            right = right.spread([j], b.shape)
    sizes = [left.shape[i] for i in (*batch_a, *free_a)]
    sizes += [right.shape[j] for j in free_b]
    left = _matrix(left, batch_a, free_a, over_a)
    right = _matrix(right, batch_b, over_b, free_b)
    some_left, some_right = ~left.zero, ~right.zero
    known = constants.matmul(left, right, some_right, aval.dtype)
    all_of = entries((*aval.shape, *(a.shape[i] for i in over_a)))
    counted = some_left.sum(1) * some_right.sum(2)
    seen = left.shape[1] * some_right.size
    times = all_of // seen if seen else 0  # entries that stand for several
    nonzero = int(counted.sum()) * times
    walk.products.append(Multiplication(all_of, nonzero, (*ids, *over)))

    def terms(gone: Array) -> Array:
        columns = left.map(lambda x: x[..., gone]).value
        found = columns @ right.map(lambda x: x[:, gone]).value
        return found.reshape(sizes)

    site = None
    if any(x is not None for x in over):
        site = walk.sum(
            merge(
                [
                    np.zeros((entries([a.shape[i]]), 1), int)
                    if x is None
                    else x
                    for i, x in zip(over_a, over, strict=True)
                ]
            ),
            (some_left.any(1) & some_right.any(2)).any(0),
            "dot_general",
            ins,
            fixed=left.flags.all((0, 1)) & right.flags.all((0, 2)),
            terms=terms,
        )
    known = known.map(lambda x: x.reshape(sizes))
    return [Value(aval.shape, ids, known, site=site)]


def _others(value: Value, *taken: tuple[int, ...]) -> tuple[int, ...]:
    used = {axis for axes in taken for axis in axes}
    return tuple(k for k in range(len(value.shape)) if k not in used)


def _matrix(known: Known, *parts: tuple[int, ...]) -> Known:
    """Three groups of axes as the axes of stacked matrices."""
    order = [axis for part in parts for axis in part]
    sizes = [
        int(np.prod([known.shape[axis] for axis in part], dtype=int))
        for part in parts
    ]
    return known.map(lambda x: x.transpose(order).reshape(sizes))
