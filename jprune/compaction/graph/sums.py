"""Rules of sums: reductions, products and convolutions."""

from typing import Any

import numpy as np

from jprune.compaction.graph import constants as constants
from jprune.compaction.graph.constants import Array, Known, nothing
from jprune.compaction.graph.ids import merge
from jprune.compaction.graph.walk import (
    Multiplication,
    Value,
    Walk,
    rule,
    unknown,
)


@rule("reduce_sum")
def reduce_sum(walk: Walk, eqn: Any, ins: list[Value]) -> list[Value]:
    """Exact without the positions that add 0: divisors are literals."""
    (x,), axes = ins, eqn.params["axes"]
    aval, entries = eqn.outvars[0].aval, ~x.known.zero
    for axis in axes:
        rest = tuple(k for k in range(len(x.shape)) if k != axis)
        walk.sum(x.ids[axis], entries.any(rest), "reduce_sum")
    known = constants.total(x.known, axes, x.shape, aval.dtype)
    ids = tuple(s for k, s in enumerate(x.ids) if k not in axes)
    return [Value(aval.shape, ids, known)]


@rule(
    *("reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or"),
    *("reduce_xor", "argmax", "argmin"),
)
def reduce_other(walk: Walk, eqn: Any, ins: list[Value]) -> list[Value]:
    """What is removed could have decided the result."""
    (x,), axes = ins, eqn.params["axes"]
    for axis in axes:
        walk.freeze(f"{eqn.primitive.name} over the axis", x.ids[axis])
    aval = eqn.outvars[0].aval
    ids = tuple(s for k, s in enumerate(x.ids) if k not in axes)
    known = nothing(len(aval.shape), aval.dtype)
    if not eqn.primitive.name.startswith("arg"):
        zero = constants.along(x.known, axes, aval.dtype)
        known = zero.map(lambda a: a.squeeze(axes))
    return [Value(aval.shape, ids, known)]


@rule("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")
def cumulative(walk: Walk, eqn: Any, ins: list[Value]) -> list[Value]:
    """What is removed would have been carried on."""
    (x,), axis = ins, eqn.params["axis"]
    walk.freeze(f"{eqn.primitive.name} over the axis", x.ids[axis])
    dtype = eqn.outvars[0].aval.dtype
    known = nothing(len(x.shape), dtype)
    if eqn.primitive.name != "cumlogsumexp":
        known = constants.along(x.known, [axis], dtype)
    return [Value(x.shape, x.ids, known)]


@rule("dot_general")
def dot_general(walk: Walk, eqn: Any, ins: list[Value]) -> list[Value]:
    """Contracted axes are summed over, batch axes aligned."""
    (a, b), aval = ins, eqn.outvars[0].aval
    (over_a, over_b), (batch_a, batch_b) = eqn.params["dimension_numbers"]
    free_a = _others(a, over_a, batch_a)
    free_b = _others(b, over_b, batch_b)

    def paired(i: int, j: int) -> Array | None:
        return walk.join("dot_general", a.ids[i], b.ids[j])

    batch = [paired(i, j) for i, j in zip(batch_a, batch_b, strict=True)]
    over = [paired(i, j) for i, j in zip(over_a, over_b, strict=True)]
    ids = (*batch, *(a.ids[i] for i in free_a), *(b.ids[j] for j in free_b))

    left = a.known.spread([*over_a], a.shape)
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
    all_of = int(np.prod([a.shape[i] for i in over_a], dtype=np.int64))
    all_of *= int(np.prod(aval.shape, dtype=np.int64))
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
                    np.zeros((a.shape[i], 1), int) if x is None else x
                    for i, x in zip(over_a, over, strict=True)
                ]
            ),
            (some_left.any(1) & some_right.any(2)).any(0),
            "dot_general",
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


@rule("conv_general_dilated")
def conv(walk: Walk, eqn: Any, ins: list[Value]) -> list[Value]:
    """Input features are summed over, in groups; windows stay as they are."""
    p, (x, kernel), aval = eqn.params, ins, eqn.outvars[0].aval
    groups = p["feature_group_count"]
    if p["batch_group_count"] != 1:
        return unknown(walk, eqn, ins)
    lhs, rhs, out = p["dimension_numbers"]
    why = "conv_general_dilated"
    walk.freeze(f"{why}: windows over the axis", *(x.ids[k] for k in lhs[2:]))
    walk.freeze(
        f"{why}: windows over the axis", *(kernel.ids[k] for k in rhs[2:])
    )
    channels, each = x.shape[lhs[1]], kernel.shape[rhs[1]]
    features = kernel.shape[rhs[0]]
    inner, made = x.ids[lhs[1]], kernel.ids[rhs[0]]
    if groups > 1:  # inputs and outputs of one group go together
        of_in = walk.ids.new(channels) if inner is None else inner
        made = walk.ids.new(features) if made is None else made
        outer, inner = walk.ids.split(of_in, (groups, each), why)
        split = walk.ids.split(made, (groups, features // groups), why)
        walk.join(why, outer, split[0])
    inner = walk.join(why, inner, kernel.ids[rhs[1]])
    axes = (made, inner)
    if groups > 1 and each == 1:
        inner = None  # depthwise: nothing is summed

    # Constants along channels; a padded window sees 0 beside a constant.
    spatial = tuple(k for k in range(len(x.shape)) if k != lhs[1])
    padded = any(lo or hi for lo, hi in p["padding"])
    padded = padded or any(k != 1 for k in p["lhs_dilation"])
    line = _channels(x.known, spatial, padded)
    line = line.spread([0], [channels])
    line = line.map(lambda a: a.reshape(groups, 1, each))
    weights = kernel.known.spread(range(len(kernel.shape)), kernel.shape)
    weights = weights.map(
        lambda a: (
            a.transpose(*rhs[2:], rhs[1], rhs[0])
            .reshape(-1, each, groups, features // groups)
            .transpose(0, 2, 1, 3)
        )
    )
    some = ~weights.zero
    nonzero = some.any(0)  # [groups, each, features of one]
    window = Known(weights.flags.all(0), weights.value.sum(0))
    known = constants.matmul(line, window, nonzero, aval.dtype)
    sizes = [1] * len(aval.shape)
    sizes[out[1]] = features
    times = int(np.prod(aval.shape, dtype=np.int64)) // max(features, 1)
    counted = some.sum((0, 3)) * ~line.zero[:, 0]
    whole, left = times * some.size, times * int(counted.sum())
    walk.products.append(Multiplication(whole, left, axes))

    def terms(gone: Array) -> Array:
        found = line.value[..., gone] @ window.value[:, gone]
        return found.reshape(sizes)

    adds = (~line.zero[:, 0]) & nonzero.any(2)
    fixed = line.flags[:, 0] & window.flags.all(2)
    site = walk.sum(inner, adds.any(0), why, fixed=fixed.all(0), terms=terms)
    ids: list[Array | None] = list(walk.fixed(aval.shape, f"{why}: positions"))
    ids[out[0]], ids[out[1]] = x.ids[lhs[0]], made
    known = known.map(lambda a: a.reshape(sizes))
    return [
        Value(aval.shape, tuple(ids), known, site=site if groups == 1 else None)
    ]


def _channels(known: Known, others: tuple[int, ...], padded: bool) -> Known:
    """What is constant along a channel, ``[channels]``."""
    zero = known.zero.all(axis=others)
    if padded or any(known.shape[k] != 1 for k in others):
        return constants.zeros(zero, known.dtype)
    return known.map(lambda a: a.squeeze(others))
