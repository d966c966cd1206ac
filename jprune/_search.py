"""The search for a threshold by counting, for any number of pools at once.

What is searched are unsigned integers, *keys*: of floats (see :mod:`jprune._keys`)
or flat indices. Each pass over the data counts what lies under a few keys, and the
bracket becomes the gap between two of them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jprune import _counts
from jprune._counts import Count
from jprune._keys import full_range
from jprune._varying import vary_like


class Bracket(NamedTuple):
    """Keys ``low < high`` with ``under_low <= lost <= under_high`` in each pool.

    Counts are per entry, what one leaf has of one pool.
    """

    low: jax.Array  # [pools] unsigned
    high: jax.Array
    under_low: jax.Array  # [entries] int32
    under_high: jax.Array


def search(
    ask: Callable[[jax.Array], jax.Array],
    count: Callable[[jax.Array], jax.Array],
    pooled: Callable[[jax.Array], Count],
    lost: Count,
    start: Bracket,
    first: jax.Array,
    enough: Any = None,
) -> tuple[Bracket, jax.Array]:
    """Finds the key under which each pool has ``lost`` candidates.

    The keys of a pass lie around the place where the wanted one would be if
    what is in the bracket were evenly spread, so that the search ends soon; or
    across the bracket, after a pass that left too much in it, so that it always
    ends.

    Args:
      ask: From keys ``[points, pools]`` to the array that ``count`` takes.
      count: To the candidates at or under each of them, ``[points, entries]``.
      pooled: Counts of entries to counts of pools.
      lost: How many are wanted, ``[pools]``.
      start: Where to search; ends ``[1]`` are for all pools.
      first: The keys of the first pass, ``[points, pools]`` or ``[points, 1]``.
      enough: How few units in a bracket end the search; None: it ends when
        ``under_low`` is ``lost``, or the ends are neighbours.

    Returns:
      The bracket, and how many keys there are from one unit in it to the next.
    """
    points, shape = len(first), lost.low.shape

    # What is asked is made ready at the end of a pass, for the next: else that
    # becomes part of the work on each leaf, and is compiled as often.
    def ready(now: Bracket, keys: jax.Array) -> Any:
        keys = jnp.clip(keys, now.low[None] + 1, now.high[None] - 1)
        return now, keys, ask(keys)

    def within(now: Bracket) -> jax.Array:
        return _counts.to_float(pooled(now.under_high - now.under_low))

    def unfinished(state: Any) -> jax.Array:
        now, *_ = state
        apart, inside = now.high > now.low + 1, within(now)
        if enough is not None:
            return jnp.any((inside > enough) & apart)
        exact = _counts.equal(pooled(now.under_low), lost)
        return jnp.any(~exact & (inside > 0) & apart)

    def narrow(state: Any) -> Any:
        before, keys, asked, gap = state
        each = count(asked)
        few = ~_counts.less(jax.tree.map(lambda x: x[None], lost), pooled(each))
        now = Bracket(
            low=jnp.max(jnp.where(few, keys, before.low[None]), 0),
            high=jnp.min(jnp.where(few, before.high[None], keys), 0),
            under_low=jnp.max(jnp.where(few, each, before.under_low[None]), 0),
            under_high=jnp.min(
                jnp.where(few, before.under_high[None], each), 0
            ),
        )
        inside = within(now)
        # Most of what was there is still there: the guess was no good.
        poor = 4 * inside > within(before)
        keys = jnp.where(
            poor[None],
            evenly(now.low, now.high, points),
            aim(now, pooled, lost, points),
        )
        # Of a few units it says nothing.
        gap = jnp.where(inside > 16, _gap(now, inside), gap)
        return *ready(now, keys), gap

    now = start._replace(
        low=jnp.broadcast_to(start.low, shape),
        high=jnp.broadcast_to(start.high, shape),
    )
    first = jnp.broadcast_to(first, (points, *shape))
    now, first = vary_like((now, first), lost)
    begin = *ready(now, first), _gap(now, within(now))
    now, _, _, gap = lax.while_loop(unfinished, narrow, begin)
    return now, gap


def evenly(low: jax.Array, high: jax.Array, points: int) -> jax.Array:
    """Keys that divide a bracket evenly, ``[points, pools]``."""
    step = 1 / (points + 1)
    return _across(low, high, points, step, step)


def aim(
    now: Bracket, pooled: Callable[[jax.Array], Count], lost: Count, points: int
) -> jax.Array:
    """Keys around the wanted one if units are evenly spread, ``[points, pools]``."""
    real = _real(now.low.dtype)
    inside = _counts.to_float(pooled(now.under_high - now.under_low))
    inside = jnp.maximum(inside, 1).astype(real)
    beyond = _counts.subtract(lost, pooled(now.under_low))
    # Half a unit further: between this unit and the next.
    part = _counts.to_float(beyond).astype(real) + 0.5
    guess = jnp.minimum(part / inside, 1)
    even, half = 1 / (points + 1), points // 2
    error = 2 * jnp.sqrt(guess * (1 - guess) / inside)
    step = jnp.minimum(error / half, even)
    edge = step * (half + 1)
    first = jnp.clip(guess, edge, 1 - edge) - step * half
    return _across(now.low, now.high, points, first, step)


def _across(
    low: jax.Array, high: jax.Array, points: int, first: Any, step: Any
) -> jax.Array:
    """Keys at regular places of a bracket, which is from 0 to 1."""
    width, real = high - low, _real(low.dtype)
    spots = np.arange(points, dtype=real)[:, None]
    first, step = (
        jnp.reshape(jnp.asarray(x, real), (1, -1)) for x in (first, step)
    )
    places = jnp.clip(first + step * spots, 0, 1)
    keys = (places * width.astype(real)[None]).astype(low.dtype)
    return low[None] + jnp.minimum(keys, width[None])


def _real(dtype: Any) -> Any:
    return np.float64 if np.dtype(dtype).itemsize == 8 else np.float32


def _gap(now: Bracket, inside: Any) -> jax.Array:
    """Keys from one unit in the bracket to the next."""
    width = (now.high - now.low).astype(np.float32)
    return width / jnp.maximum(inside, 1).astype(np.float32)


def around(
    low: jax.Array, gap: Any, beyond: Any, margin: Any, points: int
) -> jax.Array:
    """Keys of floats at both sides of a unit ``beyond`` another, near and far."""
    least, most = full_range(low.dtype)
    steps = 4 * np.linspace(-1, 1, points, dtype=np.float32)[:, None] ** 3
    move = ((beyond[None] + steps * margin[None]) * gap[None]).astype(
        np.float32
    )
    # Away from the unit: equals have one key, and those beside it are asked for.
    move = jnp.where(steps < 0, jnp.floor(move), jnp.ceil(move))
    size = jnp.clip(abs(move), 0, 2.0 ** (8 * low.itemsize - 2))
    size = size.astype(low.dtype)
    return jnp.where(
        move < 0,
        low[None] - jnp.minimum(size, (low - least)[None]),
        low[None] + jnp.minimum(size, (most - low)[None]),
    )
