"""An equation on what is left, by the record of its axes."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jprune.compaction.removal.rewrite import (
    DRIVERS,
    Mask,
    Rewrite,
    Small,
    as_it_is,
    both,
    is_dense,
    refuse,
    rule,
)
from jprune.jaxprs.primitives.pointwise import PLACEMENT
from jprune.jaxprs.records import POINTWISE, VIEW, Axes
from jprune.jaxprs.versions import bind


def by_axes(
    rewrite: Rewrite, eqn: Any, ins: list[Small], axes: Axes
) -> list[Small]:
    """Operands are cut to what is left of all that is aligned or summed."""
    if any(ins[i].masks[k] is not None for i, k in axes.whole):
        refuse(eqn)
    if axes.form == VIEW:
        return [_moved(eqn, ins[0], axes)]
    masks = [list(v.masks) for v in ins]
    groups = [places for out in axes.outs for places in out if places]
    for places in (*axes.summed, *groups):
        left: Mask = None
        for i, k in places:
            left = both(left, masks[i][k])
        for i, k in places:
            masks[i][k] = left
    cut = [rewrite.cut(v, m) for v, m in zip(ins, masks, strict=True)]
    if axes.form == POINTWISE:
        # What varies nowhere along an axis still doesn't: it stays of size 1.
        common = _common([np.shape(v.x) for v in cut])
        xs = [_wide(v, common) for v in cut]
    else:
        xs = [v.full() for v in cut]
    found = bind(eqn, xs, **axes.params(lambda i, k: cut[i].size(k)))
    many = eqn.primitive.multiple_results
    return [
        Small(
            x,
            var.aval.shape,
            tuple(masks[p[0][0]][p[0][1]] if p else None for p in places),
        )
        for x, var, places in zip(
            found if many else [found], eqn.outvars, axes.outs, strict=True
        )
    ]


DRIVERS[Axes] = by_axes


def _common(shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    """To what shapes broadcast; sizes may be symbols."""
    rank = max(map(len, shapes), default=0)
    full = [s for s in shapes if len(s) == rank]
    return tuple(
        next((n for n in sizes if n != 1), 1)
        for sizes in zip(*full, strict=True)
    )


def _wide(value: Small, common: tuple[int, ...]) -> Any:
    """Of the common shape, but for axes of size 1 in the dense program too."""
    shape = tuple(
        1 if dense == 1 else n
        for dense, n in zip(value.shape, common, strict=bool(value.shape))
    )
    same = np.shape(value.x) == shape
    return value.x if same else jnp.broadcast_to(value.x, shape)


def _moved(eqn: Any, x: Small, axes: Axes) -> Small:
    """The same entries in other places; new axes have size 1 until needed."""
    (outs,), rank = axes.outs, len(x.shape)
    order = [places[0][1] for places in outs if places]
    gone = [k for k in range(rank) if k not in order]
    y = jnp.transpose(x.x, order + gone) if order != sorted(order) else x.x
    sizes = [np.shape(x.x)[p[0][1]] if p else 1 for p in outs]
    masks = tuple(x.masks[p[0][1]] if p else None for p in outs)
    return Small(jnp.reshape(y, sizes), eqn.outvars[0].aval.shape, masks)


@rule(*PLACEMENT)
def placement(rewrite: Rewrite, eqn: Any, ins: list[Small]) -> list[Small]:
    """Placement of the dense array says nothing about a smaller one."""
    if is_dense(ins):
        return as_it_is(rewrite, eqn, ins)
    return ins
