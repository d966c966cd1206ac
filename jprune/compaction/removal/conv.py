"""Convolutions of fewer features, group by group."""

from typing import Any

from jprune.compaction.removal.rewrite import (
    Mask,
    Rewrite,
    Small,
    as_it_is,
    both,
    factors,
    is_dense,
    product,
    rule,
    tidy,
)
from jprune.jaxprs.versions import bind


@rule("conv_general_dilated")
def conv(rewrite: Rewrite, eqn: Any, ins: list[Small]) -> list[Small]:
    """Input features are cut to what is left of both, group by group."""
    if is_dense(ins):
        return as_it_is(rewrite, eqn, ins)
    x, kernel = (v.solid() for v in ins)
    lhs, rhs, out = eqn.params["dimension_numbers"]
    many = eqn.params["feature_group_count"]
    channels, each = x.shape[lhs[1]], kernel.shape[rhs[1]]
    features = kernel.shape[rhs[0]]
    # [layers, groups, inputs of each], and the same for outputs.
    outer, inner = factors(
        product([x.masks[lhs[1]]], [channels]).reshape(-1, many, each)
    )
    made, own = factors(
        product([kernel.masks[rhs[0]]], [features]).reshape(
            -1, many, features // many
        )
    )
    outer, inner = both(outer, made), both(inner, kernel.masks[rhs[1]])
    masks_x, masks_k = list(x.masks), list(kernel.masks)
    masks_x[lhs[1]] = _flat(outer, inner, many, each)
    masks_k[rhs[0]] = _flat(outer, own, many, features // many)
    masks_k[rhs[1]] = inner
    x, kernel = rewrite.cut(x, masks_x), rewrite.cut(kernel, masks_k)
    left = many if outer is None else int(outer[0].sum())
    y = bind(eqn, [x.x, kernel.x], feature_group_count=left)
    masks = [None] * len(x.shape)
    masks[out[0]], masks[out[1]] = x.masks[lhs[0]], masks_k[rhs[0]]
    return [Small(y, eqn.outvars[0].aval.shape, tuple(masks))]


def _flat(outer: Mask, inner: Mask, many: int, each: int) -> Mask:
    left = product([outer, inner], [many, each])
    return tidy(left.reshape(len(left), -1))
