"""How each primitive is carried out on what is left."""

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from jprune.compaction.graph.elementwise import ELEMENTWISE
from jprune.compaction.graph.positions import groups
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
    whole,
)
from jprune.jaxprs.versions import bind


@rule(*ELEMENTWISE)
def elementwise(rewrite: Rewrite, eqn: Any, ins: list[Small]) -> list[Small]:
    """Operands are cut to what is left of all, and aligned."""
    shape = eqn.outvars[0].aval.shape
    if len(ins) > 1:
        ins = rewrite.align(ins)
    masks: list[Mask] = [None] * len(shape)
    for v in ins:
        for k, mask in enumerate(v.masks):
            masks[k] = both(masks[k], mask)
    # What varies nowhere along an axis still doesn't: it stays of size 1.
    common = np.broadcast_shapes(*(np.shape(v.x) for v in ins))
    xs = [_wide(v, common) for v in ins]
    return [Small(bind(eqn, xs), shape, tuple(masks))]


def _wide(value: Small, common: tuple[int, ...]) -> Any:
    """Of the common shape, but for axes of size 1 in the dense program too."""
    shape = tuple(
        1 if dense == 1 else n
        for dense, n in zip(value.shape, common, strict=bool(value.shape))
    )
    same = np.shape(value.x) == shape
    return value.x if same else jnp.broadcast_to(value.x, shape)


@rule("optimization_barrier", "sharding_constraint", "device_put")
def identity(rewrite: Rewrite, eqn: Any, ins: list[Small]) -> list[Small]:
    """Placement of the dense array says nothing about a smaller one."""
    if is_dense(ins):
        return as_it_is(rewrite, eqn, ins)
    return ins


@rule("broadcast_in_dim")
def broadcast_in_dim(
    rewrite: Rewrite, eqn: Any, ins: list[Small]
) -> list[Small]:
    """New axes have size 1 until they are needed."""
    x, shape = ins[0], eqn.outvars[0].aval.shape
    if len(ins) > 1:
        return as_it_is(rewrite, eqn, ins)
    sizes, masks = [1] * len(shape), [None] * len(shape)
    for axis, to in enumerate(eqn.params["broadcast_dimensions"]):
        sizes[to], masks[to] = np.shape(x.x)[axis], x.masks[axis]
    return [Small(jnp.reshape(x.x, sizes), shape, tuple(masks))]


@rule("reshape")
def reshape(rewrite: Rewrite, eqn: Any, ins: list[Small]) -> list[Small]:
    """Axes that are merged or split are products of what is left."""
    x, shape = ins[0], eqn.outvars[0].aval.shape
    if is_dense(ins) and np.shape(x.x) == x.shape:
        return as_it_is(rewrite, eqn, ins)
    masks: list[Mask] = [None] * len(shape)
    for old, new in groups(x.shape, shape):
        sizes = [shape[k] for k in new]
        if any(x.masks[k] is not None for k in old):
            left = product([x.masks[k] for k in old], [x.shape[k] for k in old])
            for k, mask in zip(
                new, factors(left.reshape(-1, *sizes)), strict=True
            ):
                masks[k] = mask
    small = Small(None, shape, tuple(masks))
    return [replace(small, x=jnp.reshape(x.full(), small.sizes))]


@rule("squeeze")
def squeeze(rewrite: Rewrite, eqn: Any, ins: list[Small]) -> list[Small]:
    """Axes of one position go."""
    del rewrite
    x, axes = ins[0], eqn.params["dimensions"]
    masks = tuple(m for k, m in enumerate(x.masks) if k not in axes)
    shape = eqn.outvars[0].aval.shape
    return [Small(jnp.squeeze(x.x, axes), shape, masks)]


@rule("transpose")
def transpose(rewrite: Rewrite, eqn: Any, ins: list[Small]) -> list[Small]:
    """Axes change places."""
    del rewrite
    x, order = ins[0], eqn.params["permutation"]
    masks = tuple(x.masks[k] for k in order)
    shape = eqn.outvars[0].aval.shape
    return [Small(jnp.transpose(x.x, order), shape, masks)]


@rule("rev")
def rev(rewrite: Rewrite, eqn: Any, ins: list[Small]) -> list[Small]:
    """Positions change places."""
    x, axes = ins[0].solid(), eqn.params["dimensions"]
    masks = tuple(
        m[:, ::-1] if m is not None and k in axes else m
        for k, m in enumerate(x.masks)
    )
    if any(
        m is not None and len(m) > 1 and k in axes
        for k, m in enumerate(x.masks)
    ):
        return as_it_is(rewrite, eqn, ins)  # refused
    return [Small(bind(eqn, [x.x]), x.shape, masks)]


@rule(
    *("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and"),
    *("reduce_or", "reduce_xor", "argmax", "argmin"),
)
def reduce(rewrite: Rewrite, eqn: Any, ins: list[Small]) -> list[Small]:
    """A sum over what is left is the sum."""
    x, axes = ins[0].solid(), eqn.params["axes"]
    if eqn.primitive.name != "reduce_sum":
        whole(rewrite, eqn, x, axes)
    masks = tuple(m for k, m in enumerate(x.masks) if k not in axes)
    return [Small(bind(eqn, [x.x]), eqn.outvars[0].aval.shape, masks)]


@rule("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")
def cumulative(rewrite: Rewrite, eqn: Any, ins: list[Small]) -> list[Small]:
    """Along an axis that is whole."""
    x = ins[0].solid()
    whole(rewrite, eqn, x, [eqn.params["axis"]])
    return [replace(x, x=bind(eqn, [x.x]))]


@rule("sort")
def sort(rewrite: Rewrite, eqn: Any, ins: list[Small]) -> list[Small]:
    """Along an axis that is whole."""
    ins = [v.solid() for v in rewrite.align(ins)]
    whole(rewrite, eqn, ins[0], [eqn.params["dimension"]])
    outs = bind(eqn, [v.x for v in ins])
    return [replace(v, x=x) for v, x in zip(ins, outs, strict=True)]


@rule("top_k")
def top_k(rewrite: Rewrite, eqn: Any, ins: list[Small]) -> list[Small]:
    """Along an axis that is whole."""
    x = ins[0].solid()
    whole(rewrite, eqn, x, [len(x.shape) - 1])
    outs = bind(eqn, [x.x])
    return [
        Small(out, var.aval.shape, x.masks)
        for out, var in zip(outs, eqn.outvars, strict=True)
    ]


@rule("dot_general")
def dot_general(rewrite: Rewrite, eqn: Any, ins: list[Small]) -> list[Small]:
    """Contracted and batch axes are cut to what is left of both."""
    a, b = (v.solid() for v in ins)
    (over_a, over_b), (batch_a, batch_b) = eqn.params["dimension_numbers"]
    masks_a, masks_b = list(a.masks), list(b.masks)
    for i, j in zip((*over_a, *batch_a), (*over_b, *batch_b), strict=True):
        masks_a[i] = masks_b[j] = both(a.masks[i], b.masks[j])
    a, b = rewrite.cut(a, masks_a), rewrite.cut(b, masks_b)
    masks = [masks_a[i] for i in batch_a]
    masks += [m for k, m in enumerate(masks_a) if k not in (*over_a, *batch_a)]
    masks += [m for k, m in enumerate(masks_b) if k not in (*over_b, *batch_b)]
    x = bind(eqn, [a.x, b.x])
    return [Small(x, eqn.outvars[0].aval.shape, tuple(masks))]


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


@rule("gather")
def gather(rewrite: Rewrite, eqn: Any, ins: list[Small]) -> list[Small]:
    """Axes that are taken whole are as large as what is left."""
    if is_dense(ins):
        return as_it_is(rewrite, eqn, ins)
    x, indices = (v.solid() for v in ins)
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    looked_up = [k for k, n in enumerate(sizes) if n != x.shape[k]]
    whole(rewrite, eqn, x, {*looked_up, *numbers.start_index_map})
    left = tuple(
        x.size(k) if n == x.shape[k] else n for k, n in enumerate(sizes)
    )
    y = bind(eqn, [x.x, indices.x], slice_sizes=left)
    shape = eqn.outvars[0].aval.shape
    masks: list[Mask] = [None] * len(shape)
    passing = [
        k for k in range(len(x.shape)) if k not in numbers.collapsed_slice_dims
    ]
    for k, to in zip(passing, numbers.offset_dims, strict=True):
        masks[to] = x.masks[k]
    batch = [k for k in range(len(shape)) if k not in numbers.offset_dims]
    for k, mask in zip(batch, indices.masks, strict=False):
        masks[k] = mask
    return [Small(y, shape, tuple(masks))]


@rule("dynamic_slice")
def dynamic_slice(rewrite: Rewrite, eqn: Any, ins: list[Small]) -> list[Small]:
    """Axes that are taken whole are as large as what is left."""
    x, *starts = (v.solid() for v in ins)
    sizes = eqn.params["slice_sizes"]
    part = [k for k, n in enumerate(sizes) if n != x.shape[k]]
    whole(rewrite, eqn, x, part)
    left = tuple(n if k in part else x.size(k) for k, n in enumerate(sizes))
    y = bind(eqn, [x.x, *(v.x for v in starts)], slice_sizes=left)
    return [Small(y, eqn.outvars[0].aval.shape, x.masks)]


@rule("dynamic_update_slice")
def dynamic_update_slice(
    rewrite: Rewrite, eqn: Any, ins: list[Small]
) -> list[Small]:
    """Axes that are written whole are aligned."""
    x, update, *starts = (v.solid() for v in ins)
    part = [k for k, n in enumerate(x.shape) if n != update.shape[k]]
    whole(rewrite, eqn, x, part)
    whole(rewrite, eqn, update, part)
    masks = [both(a, b) for a, b in zip(x.masks, update.masks, strict=True)]
    x, update = rewrite.cut(x, masks), rewrite.cut(update, masks)
    return [replace(x, x=bind(eqn, [x.x, update.x, *(v.x for v in starts)]))]


@rule("reduce_window_max", "reduce_window_min", "reduce_window_sum")
def reduce_window(rewrite: Rewrite, eqn: Any, ins: list[Small]) -> list[Small]:
    """Windows over axes that are whole."""
    x, shape = ins[0].solid(), eqn.outvars[0].aval.shape
    windows = eqn.params["window_dimensions"]
    part = [
        k for k, n in enumerate(shape) if n != x.shape[k] or windows[k] != 1
    ]
    whole(rewrite, eqn, x, part)
    return [Small(bind(eqn, [x.x]), shape, x.masks)]
