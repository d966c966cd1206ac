"""How positions are put side by side, or cut out, where some are gone."""

import itertools
from typing import Any

import jax.numpy as jnp
import numpy as np

from jprune.compaction.removal.rewrite import (
    Mask,
    Rewrite,
    Small,
    as_it_is,
    both,
    is_dense,
    product,
    rule,
    tidy,
    whole,
)
from jprune.jaxprs.versions import bind


@rule("concatenate")
def concatenate(rewrite: Rewrite, eqn: Any, ins: list[Small]) -> list[Small]:
    """What is left of each, one after the other."""
    axis, shape = eqn.params["dimension"], eqn.outvars[0].aval.shape
    masks: list[Mask] = [None] * len(shape)
    for v in ins:
        for k, mask in enumerate(v.masks):
            masks[k] = None if k == axis else both(masks[k], mask)
    cut = []
    for v in ins:
        masks[axis] = v.masks[axis]
        cut.append(rewrite.cut(v, masks).full())
    if any(v.masks[axis] is not None for v in ins):
        parts = [product([v.masks[axis]], [v.shape[axis]]) for v in ins]
        layers = max(map(len, parts))
        masks[axis] = np.concatenate(
            [np.broadcast_to(m, (layers, m.shape[1])) for m in parts], 1
        )
    x = jnp.concatenate(cut, axis)
    return [Small(x, shape, tuple(masks))]


@rule("stack")
def stack(rewrite: Rewrite, eqn: Any, ins: list[Small]) -> list[Small]:
    """What is left of each, along an axis that is new."""
    ins = [v.solid() for v in rewrite.align(ins)]
    masks = list(ins[0].masks)
    masks.insert(eqn.params["axis"], None)
    x = bind(eqn, [v.x for v in ins])
    return [Small(x, eqn.outvars[0].aval.shape, tuple(masks))]


@rule("unstack")
def unstack(rewrite: Rewrite, eqn: Any, ins: list[Small]) -> list[Small]:
    """One for each position of an axis that is whole."""
    x, axis = ins[0].solid(), eqn.params["axis"]
    whole(rewrite, eqn, x, [axis])
    masks = tuple(m for k, m in enumerate(x.masks) if k != axis)
    return [
        Small(y, var.aval.shape, masks)
        for y, var in zip(bind(eqn, [x.x]), eqn.outvars, strict=True)
    ]


@rule("tile")
def tile(rewrite: Rewrite, eqn: Any, ins: list[Small]) -> list[Small]:
    """What is left, several times over."""
    del rewrite  # nothing is cut
    x, shape = ins[0].solid(), eqn.outvars[0].aval.shape
    masks = tuple(
        None if m is None else np.tile(m, (1, many // n))
        for m, n, many in zip(x.masks, x.shape, shape, strict=True)
    )
    return [Small(bind(eqn, [x.x]), shape, masks)]


def _range(rewrite: Rewrite, x: Small, axis: int, index: slice) -> Small:
    """Some positions of one axis."""
    n = len(range(*index.indices(x.shape[axis])))
    shape = (*x.shape[:axis], n, *x.shape[axis + 1 :])
    masks, mask = list(x.masks), x.masks[axis]
    if np.shape(x.x)[axis] == 1 and x.shape[axis] > 1:
        places: Any = None  # nothing varies
    elif mask is None:
        places = np.arange(x.shape[axis])[index]
    elif len(mask) == 1:
        kept = np.flatnonzero(mask[0])
        wanted = np.arange(x.shape[axis])[index]
        places = np.searchsorted(kept, wanted[mask[0][wanted]])
    else:
        inside = np.zeros_like(mask)
        inside[:, index] = mask[:, index]
        places = jnp.searchsorted(rewrite.places(mask), rewrite.places(inside))
    if mask is not None:
        masks[axis] = tidy(mask[:, index])
    y = x.x
    if places is not None and len(places) != y.shape[axis]:
        y = jnp.take(y, places, axis)
    return Small(y, shape, tuple(masks))


@rule("slice")
def slice_(rewrite: Rewrite, eqn: Any, ins: list[Small]) -> list[Small]:
    """What is left of the positions inside."""
    x, p = ins[0], eqn.params
    if is_dense(ins):
        return as_it_is(rewrite, eqn, ins)
    strides = p["strides"] or (1,) * len(x.shape)
    ranges = zip(p["start_indices"], p["limit_indices"], strides, strict=True)
    for axis, (start, stop, step) in enumerate(ranges):
        if (start, stop, step) != (0, x.shape[axis], 1):
            x = _range(rewrite, x, axis, slice(start, stop, step))
    return [x]


@rule("split")
def split(rewrite: Rewrite, eqn: Any, ins: list[Small]) -> list[Small]:
    """Slices that lie side by side."""
    if is_dense(ins):
        return as_it_is(rewrite, eqn, ins)
    axis, ends = eqn.params["axis"], np.cumsum([0, *eqn.params["sizes"]])
    return [
        _range(rewrite, ins[0], axis, slice(int(start), int(stop)))
        for start, stop in itertools.pairwise(ends)
    ]


@rule("pad")
def pad(rewrite: Rewrite, eqn: Any, ins: list[Small]) -> list[Small]:
    """What is put around stays."""
    x = ins[0].solid()
    masks = list(x.masks)
    for axis, (low, high, inside) in enumerate(eqn.params["padding_config"]):
        mask = masks[axis]
        if mask is not None and (low or high or inside):
            ends = ((0, 0), (low, high))
            masks[axis] = np.pad(mask, ends, constant_values=True)
    y = bind(eqn, [x.x, ins[1].x])
    return [Small(y, eqn.outvars[0].aval.shape, tuple(masks))]
