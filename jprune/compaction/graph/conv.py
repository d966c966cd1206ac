"""Convolutions: how features and groups go together, and what is constant."""

from typing import Any

from jprune.compaction.graph import constants as constants
from jprune.compaction.graph.constants import Array, Known
from jprune.compaction.graph.walk import (
    Multiplication,
    Value,
    Walk,
    rule,
    unknown,
)
from jprune.jaxprs.shapes import entries


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
    times = entries(aval.shape) // max(features, 1)
    counted = some.sum((0, 3)) * ~line.zero[:, 0]
    whole, left = times * some.size, times * int(counted.sum())
    walk.products.append(Multiplication(whole, left, axes))

    def terms(gone: Array) -> Array:
        found = line.value[..., gone] @ window.value[:, gone]
        return found.reshape(sizes)

    adds = (~line.zero[:, 0]) & nonzero.any(2)
    fixed = line.flags[:, 0] & window.flags.all(2)
    site = walk.sum(
        inner, adds.any(0), why, ins, fixed=fixed.all(0), terms=terms
    )
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
