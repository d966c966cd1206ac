"""A search for thresholds by counting, for any number of pools at once.

A bracket holds an unsigned integer, the *key*, between two ends. Each pass over
the data counts what lies at or under a few keys, and the bracket becomes the gap
between two of them. Keys stand for floats, or for places in a leaf.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jprune import _counts
from jprune._counts import Count


class Bracket(NamedTuple):
    """Keys ``low < high`` with ``under_low <= lost <= under_high`` in each pool.

    Counts are per entry, a pool of one leaf; pools and entries differ where one
    pool has many leaves.
    """

    low: jax.Array  # [pools] unsigned
    high: jax.Array
    under_low: jax.Array  # [entries] int32: how many lie at or under ``low``
    under_high: jax.Array


def search(
    count: Callable[[jax.Array], jax.Array],
    look: Callable[[jax.Array], jax.Array],
    pooled: Callable[[jax.Array], Count],
    lost: Count,
    start: Bracket,
    points: int,
    hint: tuple[jax.Array, jax.Array] | None = None,
) -> tuple[Bracket, jax.Array]:
    """Finds the key at or under which each pool has ``lost`` units.

    The keys of a pass lie around the place where the wanted one would be if
    what is in the bracket were evenly spread, so that the search ends soon, or
    across the bracket, so that it always ends.

    Args:
      count: What ``look`` made of ``[points, pools]`` keys to the counts
        ``[points, entries]`` at or under them.
      look: Keys to what they stand for, elementwise. It goes from pass to pass
        in place of the keys: else making it becomes part of the work on each
        leaf, and is compiled as often.
      pooled: Counts of entries to counts of pools.
      lost: How many are wanted under the key, ``[pools]``.
      start: What to begin with; its ends are not asked for.
      points: How many keys to ask for in one pass.
      hint: Between which keys to look first.

    Returns:
      A bracket; in each pool its ``low`` has exactly ``lost`` under it, or its
      ends are neighbours. And what its ends stand for, ``[2, pools]``.
    """
    real = np.float64 if start.low.dtype.itemsize == 8 else np.float32
    spots = np.arange(points, dtype=real)[:, None]

    def unfinished(now: Any) -> jax.Array:
        here = now[0]
        inexact = ~_counts.equal(pooled(here.under_low), lost)
        return jnp.any(inexact & (here.high - here.low > 1))

    def across(low: jax.Array, high: jax.Array, first: Any, step: Any) -> Any:
        width = high - low
        places = jnp.clip(first + step * spots, 0, 1)
        keys = (places * width.astype(real)).astype(low.dtype)
        return low + jnp.minimum(keys, width)

    def ready(now: Bracket, keys: jax.Array, turn: Any) -> Any:
        keys = jnp.clip(keys, now.low + 1, now.high - 1)
        asked = look(jnp.concatenate([keys, now.low[None], now.high[None]]))
        return now, keys, asked, turn

    def narrow(state: Any) -> Any:
        (low, high, under_low, under_high), keys, asked, turn = state
        each = count(asked[:-2])
        few = ~_counts.less(lost, pooled(each))
        for key, here, is_few in zip(keys, each, few, strict=True):
            up, down = is_few & (key > low), ~is_few & (key < high)
            low, high = jnp.where(up, key, low), jnp.where(down, key, high)
            under_low = jnp.where(up, here, under_low)
            under_high = jnp.where(down, here, under_high)
        below = pooled(under_low)
        inside = _counts.to_float(pooled(under_high - under_low))
        beyond = _counts.to_float(_counts.subtract(lost, below))
        inside = jnp.maximum(inside, 1).astype(real)
        # Half a unit further: between this unit and the next.
        guess = jnp.minimum((beyond.astype(real) + 0.5) / inside, 1)
        even, half = 1 / (points + 1), points // 2
        error = 2 * jnp.sqrt(guess * (1 - guess) / inside)
        step = jnp.minimum(error / max(half, 1), even)
        step = jnp.where((turn > 4) & (turn % 2 == 1), even, step)
        edge = step * (half + 1)
        first = jnp.clip(guess, edge, 1 - edge) - step * half
        keys = across(low, high, first, step)
        return ready(Bracket(low, high, under_low, under_high), keys, turn + 1)

    if hint is None:
        keys = across(start.low, start.high, 1 / (points + 1), 1 / (points + 1))
    else:
        keys = across(*hint, 0, 1 / (points - 1)).at[-1].set(hint[1])
    begin = ready(start, keys, 0)
    found, _, asked, _ = lax.while_loop(unfinished, narrow, begin)
    return found, asked[-2:]
