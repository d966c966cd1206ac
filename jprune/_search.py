"""The search for cuts by counting, for any number of pools at once.

Floats order like their bit patterns: turned into unsigned integers, *keys*, they
can be bracketed. Each pass over the data counts what lies under a few cuts, and
the bracket becomes the gap between two of them. Where its ends are neighbours
there are equals to divide, and the search goes on among flat indices.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jprune import _counts
from jprune._counts import Count
from jprune._cuts import EVERY
from jprune._keys import bits_of, landmarks, outside


class Bracket(NamedTuple):
    """Keys ``low < high`` with ``under_low <= lost <= under_high`` in each pool.

    Counts are per entry, what one leaf has of one pool.
    """

    low: jax.Array  # [pools] unsigned
    high: jax.Array
    under_low: jax.Array  # [entries] int32
    under_high: jax.Array


class _Ties(NamedTuple):
    """What divides equals."""

    found: jax.Array  # [pools] bool: keys are indices, counted from the end
    low: jax.Array  # [pools] unsigned: the last keys of scores
    high: jax.Array
    divided: jax.Array  # [entries] bool: where the index matters
    bound: jax.Array  # [entries] unsigned: elsewhere, all or none


def search(
    count: Callable[[list[jax.Array], jax.Array], jax.Array],
    parts: Callable[[jax.Array], list[jax.Array]],
    pooled: Callable[[jax.Array], Count],
    lost: Count,
    grow: jax.Array,
    available: jax.Array,
    size: int,
    dtype: Any,
    points: int,
    ends: tuple[jax.Array, jax.Array] | None = None,
    hint: jax.Array | None = None,
    enough: Any = None,
) -> tuple[jax.Array, jax.Array]:
    """Finds the cut under which each pool has ``lost`` candidates.

    The keys of a pass lie around the place where the wanted one would be if
    what is in the bracket were evenly spread, so that the search ends soon; or
    across the bracket, after a pass that left too much in it, so that it always
    ends.

    Args:
      count: Cuts of what is read (see :mod:`jprune._cuts`), and whether any of
        them divides equals, to the candidates ``[points, entries]`` under them.
      parts: ``[..., entries]`` to an array for each thing that is read;
        ``[..., 1]`` is for all.
      pooled: Counts of entries to counts of pools.
      lost: How many are wanted under the cut, ``[pools]``.
      grow: Whether the candidates are those that were not kept, bool ``[pools]``.
      available: How many there are, ``[entries]`` int32.
      size: The largest number of units in an entry.
      dtype: Of keys, unsigned, as wide as the widest score.
      points: How many keys to ask for in one pass.
      ends: The least and the highest key of the candidates, if they are known.
      hint: Keys to begin with, ``[points, pools]``.
      enough: How few units in a bracket end the search; None: the cut is exact.

    Returns:
      The cut, ``[rows, entries]``, and keys around it, ``[points, pools]``, of
      which most are not further than ``enough`` units.
    """
    real = np.float64 if np.dtype(dtype).itemsize == 8 else np.float32
    spots = np.arange(points, dtype=real)[:, None]
    sign, infinity = landmarks(dtype)
    entries, shape = available.shape, lost.low.shape

    def cuts(keys: jax.Array, ties: _Ties) -> jax.Array:
        low = bits_of(jnp.where(ties.found, ties.low, keys))
        index = np.array(size, dtype) - keys
        bound = jnp.where(ties.divided, index, ties.bound)
        high, last = bits_of(ties.high), grow.astype(dtype)
        low, bound, high, last = _alike(low, bound, high[None], last[None])
        pairs = jnp.stack([low, bound], axis=1).reshape(-1, low.shape[-1])
        return jnp.concatenate([pairs, high, last])

    def across(low: jax.Array, high: jax.Array, first: Any, step: Any) -> Any:
        width = high - low
        places = jnp.clip(first + step * spots, 0, 1)
        keys = (places * width.astype(real)).astype(dtype)
        return low + jnp.minimum(keys, width)

    # Cuts are made and divided among leaves at the end of a pass, for the next:
    # else that becomes part of the work on each leaf, and is compiled as often.
    def ready(low: Any, high: Any, ties: _Ties, keys: jax.Array) -> Any:
        keys = jnp.clip(keys, low + 1, high - 1)
        return keys, parts(cuts(keys, ties))

    def within(now: Bracket) -> jax.Array:
        return _counts.to_float(pooled(now.under_high - now.under_low))

    def unfinished(state: Any) -> jax.Array:
        now, ties, *_ = state
        apart = now.high - now.low > 1
        if enough is not None:
            return jnp.any((within(now) > enough) & apart)
        exact = _counts.equal(pooled(now.under_low), lost)
        # Counts that contradict the scores must not keep it from ending: under
        # `vmap` what a `lax.cond` does not choose is computed too.
        return jnp.any(~exact & (within(now) > 0) & (~ties.found | apart))

    def narrow(state: Any) -> Any:
        before, had, keys, asked, gap = state
        low, high, under_low, under_high = before
        each = count(asked, jnp.any(had.found))
        few = ~_counts.less(lost, pooled(each))
        for key, here, is_few in zip(keys, each, few, strict=True):
            up, down = is_few & (key > low), ~is_few & (key < high)
            low, high = jnp.where(up, key, low), jnp.where(down, key, high)
            under_low = jnp.where(up, here, under_low)
            under_high = jnp.where(down, here, under_high)
        now, ties = Bracket(low, high, under_low, under_high), had
        if enough is None:
            now, ties = _divide(now, had, pooled, lost, size)
        inside = within(now)
        # Most of what was there is still there: the guess was no good.
        poor = (4 * inside > within(before)) & (ties.found == had.found)
        beyond = _counts.subtract(lost, pooled(now.under_low))
        inside = jnp.maximum(inside, 1).astype(real)
        # Half a unit further: between this unit and the next.
        part = _counts.to_float(beyond).astype(real) + 0.5
        guess = jnp.minimum(part / inside, 1)
        even, half = 1 / (points + 1), points // 2
        error = 2 * jnp.sqrt(guess * (1 - guess) / inside)
        step = jnp.where(poor, even, jnp.minimum(error / half, even))
        edge = step * (half + 1)
        first = jnp.clip(guess, edge, 1 - edge) - step * half
        keys = across(now.low, now.high, first, step)
        # Of a few units it says nothing.
        gap = jnp.where(inside > 16, _gap(now, inside), gap)
        return now, ties, *ready(now.low, now.high, ties, keys), gap

    # As long as nothing is known of a pool, what is asked of it is the same for
    # all, and needn't be divided among the leaves.
    low = jnp.full(1, sign - infinity - 1)
    high = jnp.full(1, sign + infinity + 1)
    if ends is not None:
        least, most = outside(*ends)
        high = jnp.clip(most + 1, low + 1, high)
        low = jnp.clip(least - 1, low, high - 1)
    none = _Ties(
        found=jnp.zeros(1, bool),
        low=low,
        high=high,
        divided=jnp.zeros(1, bool),
        bound=jnp.full(1, EVERY, dtype),
    )
    if hint is None:
        even = 1 / (points + 1)
        hint = across(low, high, even, even)
    keys, asked = ready(low, high, none, hint)
    start = Bracket(
        low=jnp.broadcast_to(low, shape),
        high=jnp.broadcast_to(high, shape),
        under_low=jnp.zeros(entries, np.int32),
        under_high=available,
    )
    ties = _Ties(
        *(jnp.broadcast_to(x, shape) for x in none[:3]),
        *(jnp.broadcast_to(x, entries) for x in none[3:]),
    )
    keys = jnp.broadcast_to(keys, (points, *shape))
    begin = start, ties, keys, asked, _gap(start, within(start))
    now, ties, _, _, gap = lax.while_loop(unfinished, narrow, begin)
    margin = within(now) if enough is None else enough
    beyond = _counts.to_float(_counts.subtract(lost, pooled(now.under_low)))
    return (
        cuts(now.low[None], ties),
        _around(now.low, gap, beyond, margin, points),
    )


def _alike(*rows: jax.Array) -> list[jax.Array]:
    """Rows of one entry as rows of as many as others have."""
    entries = max(x.shape[-1] for x in rows)
    return [jnp.broadcast_to(x, (len(x), entries)) for x in rows]


def _gap(now: Bracket, inside: Any) -> jax.Array:
    """Keys from one unit in the bracket to the next."""
    width = (now.high - now.low).astype(np.float32)
    return width / jnp.maximum(inside, 1).astype(np.float32)


def _around(
    low: jax.Array, gap: Any, beyond: Any, margin: Any, points: int
) -> jax.Array:
    """Keys at both sides of a unit ``beyond`` another, near it and far."""
    sign, infinity = landmarks(low.dtype)
    least, most = sign - infinity - 1, sign + infinity + 1
    steps = 4 * np.linspace(-1, 1, points, dtype=np.float32)[:, None] ** 3
    move = ((beyond + steps * margin) * gap).astype(np.float32)
    # Away from the unit: equals have one key, and those beside it are asked for.
    move = jnp.where(steps < 0, jnp.floor(move), jnp.ceil(move))
    size = jnp.clip(abs(move), 0, 2.0 ** (8 * low.itemsize - 2))
    size = size.astype(low.dtype)
    return jnp.where(
        move < 0,
        low - jnp.minimum(size, low - least),
        low + jnp.minimum(size, most - low),
    )


def _divide(
    now: Bracket,
    ties: _Ties,
    pooled: Callable[[jax.Array], Count],
    lost: Count,
    size: int,
) -> tuple[Bracket, _Ties]:
    """Goes on among flat indices in pools where one score is left.

    Of equals the first stay. So entry after entry keeps all it has until there
    are enough; one in each pool is divided.
    """
    (low, high, under_low, under_high), dtype = now, now.low.dtype
    inexact = ~_counts.equal(pooled(under_low), lost)
    begin = ~ties.found & inexact & (high - low <= 1)
    equals = under_high - under_low
    stay = _counts.subtract(pooled(under_high), lost)
    if stay.low.shape == equals.shape:  # an entry is a pool
        shares = _counts.to_int32(stay)
    else:
        dealt = _counts.share(stay, _counts.count_of(equals))
        shares = _counts.to_int32(dealt)
    divided = begin & (shares > 0) & (shares < equals)
    none = jnp.where(begin & (shares <= 0), equals, 0)
    some = jnp.where(divided, equals, 0)
    at_start = under_low + none
    return Bracket(
        low=jnp.where(begin, np.array(0, dtype), low),
        high=jnp.where(begin, np.array(size, dtype), high),
        under_low=jnp.where(begin, at_start, under_low),
        under_high=jnp.where(begin, at_start + some, under_high),
    ), _Ties(
        found=ties.found | begin,
        low=jnp.where(begin, low, ties.low),
        high=jnp.where(begin, high, ties.high),
        divided=ties.divided | divided,
        bound=jnp.where(begin & (shares <= 0), np.array(0, dtype), ties.bound),
    )
