"""The search for a threshold by counting, for any number of pools at once.

What is searched are unsigned integers, *keys*: of floats (see :mod:`jprune.selection.keys`),
or how many of the last places go. Each pass over the data counts what lies under a
few keys, and the bracket becomes the gap between two of them.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jprune._core import counts as _counts
from jprune._core.counts import Count

POINTS = 7
"""How many keys a pass asks for: so many comparisons take as long as the read."""

_LINE = np.linspace(-1, 1, POINTS)
SPREAD = (np.sign(_LINE) * abs(_LINE) ** 1.5)[:, None]
"""Places at both sides of another, near and far, ``[points, 1]``."""


class Bracket(NamedTuple):
    """Keys ``low < high`` with ``under_low <= lost <= under_high`` in each pool.

    All ``[1, entries]``: an entry is what one leaf has of one pool, and those of one
    pool have the same keys.
    """

    low: jax.Array  # unsigned
    high: jax.Array
    under_low: jax.Array  # int32
    under_high: jax.Array


def unfinished(
    now: Bracket, pooled: Callable[[jax.Array], Count], lost: Count
) -> jax.Array:
    """Whether the keys of any pool are neither at ``lost`` nor neighbours."""
    exact = _counts.equal(pooled(now.under_low), lost)
    return jnp.any(
        ~exact & (_inside(now, pooled) > 0) & (now.high > now.low + 1)
    )


def _inside(now: Bracket, pooled: Callable[[jax.Array], Count]) -> jax.Array:
    return _counts.to_float(pooled(now.under_high - now.under_low))


def narrowed(
    before: Bracket, keys: jax.Array, each: jax.Array, few: jax.Array
) -> Bracket:
    """The gap between the last key with few enough and the next."""
    values = (
        jnp.where(few, keys, before.low),
        jnp.where(few, before.high, keys),
        jnp.where(few, each, before.under_low),
        jnp.where(few, before.under_high, each),
    )
    # One reduction of all is one program; four are four.
    least = [np.array(np.iinfo(x.dtype).min, x.dtype) for x in values]
    most = [np.array(np.iinfo(x.dtype).max, x.dtype) for x in values]
    found = lax.reduce(
        values,
        (least[0], most[1], least[2], most[3]),
        lambda a, b: (
            lax.max(a[0], b[0]),
            lax.min(a[1], b[1]),
            lax.max(a[2], b[2]),
            lax.min(a[3], b[3]),
        ),
        (0,),
    )
    return Bracket(*(x[None] for x in found))


def aim(
    now: Bracket,
    pooled: Callable[[jax.Array], Count],
    lost: Count,
    before: Bracket,
    new: jax.Array,
) -> jax.Array:
    """The keys of the next pass, ``[points, entries]``.

    They lie around the place where the wanted one would be if what is in the bracket
    were evenly spread, so that the search ends soon; or across the bracket, after a
    pass that left too much of what was there ``before`` if the search is not
    ``new``, so that it always ends.
    """
    real = np.float64 if now.low.dtype.itemsize == 8 else np.float32
    inside = _inside(now, pooled)
    beyond = _counts.subtract(lost, pooled(now.under_low))
    # Half a unit further: between this unit and the next. As far to both sides
    # as two standard errors can be.
    middle = _counts.to_float(beyond).astype(real) + real(0.5)
    root = lax.rsqrt(jnp.maximum(inside, 1).astype(real))
    places = middle * root * root + SPREAD.astype(real) * root
    even = np.linspace(0, 1, POINTS + 2, dtype=real)[1:-1, None]
    poor = ~new & (4 * inside > _inside(before, pooled))
    places = jnp.clip(jnp.where(poor, even, places), 0, 1)
    width = now.high - now.low
    keys = (places * width.astype(real)).astype(width.dtype)
    keys = now.low + jnp.minimum(keys, width)
    return jnp.clip(keys, now.low + 1, now.high - 1)
