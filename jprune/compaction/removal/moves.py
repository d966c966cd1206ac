"""An equation on what is left, by the record of what it moves."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from jprune.compaction.graph.constants import Array
from jprune.compaction.removal.rewrite import (
    DRIVERS,
    Mask,
    Rewrite,
    Small,
    as_it_is,
    both,
    is_dense,
    product,
    refuse,
    tidy,
)
from jprune.jaxprs.records import Moves
from jprune.jaxprs.versions import bind


def by_moves(
    rewrite: Rewrite, eqn: Any, ins: list[Small], moves: Moves
) -> list[Small]:
    """As it is where the positions that move are all left; else they are looked up."""
    if is_dense(ins):
        return as_it_is(rewrite, eqn, ins)
    parts = [v for i, v in enumerate(ins) if i != moves.filling]
    axes = {axis for taken in moves.outs for axis in taken}
    own = () if moves.added is not None else axes
    parts = _aligned(rewrite, parts, own)
    if all(v.masks[k] is None for v in parts for k in own):
        return _as_it_was(eqn, ins, parts, moves)
    if moves.dropped is not None:
        refuse(eqn)
    outs = []
    for taken in moves.outs:
        one = parts[0]
        if len(parts) > 1:
            one = _side_by_side(parts, *taken)
        for axis, places in taken.items():
            filling = None if moves.filling is None else ins[moves.filling].x
            one = _take(rewrite, eqn, one, axis, places, filling)
        outs.append(one)
    return outs


DRIVERS[Moves] = by_moves


def _aligned(rewrite: Rewrite, parts: list[Small], own: Any) -> list[Small]:
    """Cut to what is left of all, but for axes along which they lie."""
    masks: list[Mask] = [None] * len(parts[0].shape)
    for v in parts:
        for k, mask in enumerate(v.masks):
            masks[k] = None if k in own else both(masks[k], mask)
    return [
        rewrite.cut(
            v, [v.masks[k] if k in own else m for k, m in enumerate(masks)]
        )
        for v in parts
    ]


def _as_it_was(
    eqn: Any, ins: list[Small], parts: list[Small], moves: Moves
) -> list[Small]:
    """Only other axes are smaller."""
    left = iter(parts)
    xs = [
        v.x if i == moves.filling else next(left).full()
        for i, v in enumerate(ins)
    ]
    found = bind(eqn, xs, **moves.params(lambda i, k: parts[i].size(k)))
    masks = list(parts[0].masks)
    if moves.added is not None:
        masks.insert(moves.added, None)
    if moves.dropped is not None:
        del masks[moves.dropped]
    many = eqn.primitive.multiple_results
    return [
        Small(x, var.aval.shape, tuple(masks))
        for x, var in zip(found if many else [found], eqn.outvars, strict=True)
    ]


def _side_by_side(parts: list[Small], axis: int) -> Small:
    """What is left of each, one after the other."""
    lines = [product([v.masks[axis]], [v.shape[axis]]) for v in parts]
    layers = max(map(len, lines))
    mask = np.concatenate(
        [np.broadcast_to(m, (layers, m.shape[1])) for m in lines], 1
    )
    shape, masks = list(parts[0].shape), list(parts[0].masks)
    shape[axis], masks[axis] = mask.shape[1], tidy(mask)
    x = jnp.concatenate([v.full() for v in parts], axis)
    return Small(x, tuple(shape), tuple(masks))


def _take(
    rewrite: Rewrite,
    eqn: Any,
    x: Small,
    axis: int,
    places: Array,
    filling: Any,
) -> Small:
    """Of some positions of an axis what is left; -1 is the filling."""
    n, filled = x.shape[axis], places < 0
    left = product([x.masks[axis]], [n])
    mask = filled | left[:, places] if n else filled[None]
    shape, masks = list(x.shape), list(x.masks)
    shape[axis], masks[axis] = len(places), tidy(mask)
    y = x.x
    if filled.any():
        end = list(x.sizes)
        end[axis] = 1
        y = jnp.concatenate([x.full(), jnp.broadcast_to(filling, end)], axis)
    if np.shape(y)[axis] > 1:
        if len({*mask.sum(1).tolist()}) > 1:
            refuse(eqn, "its layers keep different numbers of positions")
        rank = np.cumsum(left, 1) - 1
        last = x.size(axis)
        at = [
            np.where(filled, last, row[places])[here]
            for row, here in zip(rank, mask, strict=True)
        ]
        y = _looked_up(rewrite, y, axis, at)
    return Small(y, tuple(shape), tuple(masks))


def _looked_up(rewrite: Rewrite, y: Any, axis: int, at: list[Array]) -> Any:
    """Positions of an axis; one row, or one for each layer."""
    first = at[0]
    if any((row != first).any() for row in at):
        return jnp.take(y, jnp.asarray(np.stack(at))[rewrite.layer], axis)
    start, stop = (int(first[0]), int(first[-1]) + 1) if len(first) else (0, 0)
    if (first == np.arange(start, start + len(first))).all():
        return lax.slice_in_dim(y, start, stop, axis=axis)
    return jnp.take(y, first, axis)
