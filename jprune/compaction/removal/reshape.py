"""Axes that are merged and split, where some positions are gone."""

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from jprune.compaction.removal.axes import by_axes
from jprune.compaction.removal.rewrite import (
    Mask,
    Rewrite,
    Small,
    as_it_is,
    factors,
    is_dense,
    product,
    rule,
)
from jprune.jaxprs.primitives.moves import reshape_of_nothing as record_of
from jprune.jaxprs.shapes import groups


@rule("reshape")
def reshape(rewrite: Rewrite, eqn: Any, ins: list[Small]) -> list[Small]:
    """Axes that are merged or split are products of what is left."""
    x, shape = ins[0], eqn.outvars[0].aval.shape
    if (record := record_of(eqn)) is not None:
        return by_axes(rewrite, eqn, ins, record)
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
