"""Which units stay: exact selection of the k best, by counting.

Floats order like their bit patterns, so the k-th largest score is found digit
by digit: count the scores above a few thresholds, keep the digit, go on. No
sort, no concatenation; on a mesh only counts travel.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jprune import _counts
from jprune._checks import check_floating, is_traced
from jprune._counts import Count
from jprune._trees import is_hole, leaves_with_path, rebuild
from jprune._typing import Masks, Tree

__all__ = ["top_k_mask"]


def top_k_mask(scores: Tree, k: jax.typing.ArrayLike) -> Masks:
    """Marks the ``k`` largest scores of a whole tree, exactly.

    The order is that of ``jnp.argsort(descending=True, stable=True)`` over the
    leaves one after the other: NaN first, -0 equal to 0, ties by leaf and then
    by flat index.

    Args:
      scores: A tree of floating arrays of any shapes and precisions; ``None``
        and ``optax.MaskedNode`` are passed over.
      k: How many to mark, an integer from 0 to the number of scores. It may be
        traced; a traced ``k`` outside is clipped.

    Returns:
      A tree like ``scores`` of bool arrays with exactly ``k`` True.

    Raises:
      ValueError: A leaf is not floating, or a concrete ``k`` is no integer from
        0 to the number of scores.

    Cost: about ten passes over the scores, at most 32 (64 in float64), and one
    more per axis if equal scores must be divided.

    >>> import jax.numpy as jnp, jprune
    >>> jprune.selection.top_k_mask({"a": jnp.array([3., 1.]), "b": 2.}, 2)
    {'a': Array([ True, False], dtype=bool), 'b': Array(True, dtype=bool)}
    """
    leaves = leaves_with_path(scores)
    for path, leaf in leaves:
        if not is_hole(leaf):
            check_floating("`top_k_mask(scores, k)`", path, leaf)
    units = [jnp.asarray(x)[None] for _, x in leaves if not is_hole(x)]
    size = sum(x.size for x in units)
    wanted = _checked_k(k, size)
    masks = iter(select(units, wanted) if units else [])
    return rebuild(
        scores, [x if is_hole(x) else next(masks)[0] for _, x in leaves]
    )


def _checked_k(k: Any, size: int) -> Count:
    """``k`` as a count; clipped if it is traced."""
    if is_traced(k):
        if k.ndim or not jnp.issubdtype(k.dtype, jnp.integer):
            raise ValueError(
                f"`top_k_mask(scores, k)`: k must be an integer scalar, got {k}."
            )
        wanted = _counts.count_of(jnp.maximum(k, 0))
        most = _counts.count_of(size)
        return _counts.where(_counts.less(most, wanted), most, wanted)
    if np.ndim(k) or int(k) != k or not 0 <= k <= size:
        raise ValueError(
            "`top_k_mask(scores, k)`: k must be an integer from 0 to "
            f"{size}, the number of scores, got {k}."
        )
    return _counts.count_of(int(k))


def select(
    units: list[jax.Array],
    wanted: Count | list[Count],
    kept: list[jax.Array] | None = None,
) -> list[jax.Array]:
    """Marks the best units of each pool, or of all pools in one ranking.

    Args:
      units: Scores; axis 0 of each indexes pools, the others units.
      wanted: How many to mark: one scalar count for one ranking of all units,
        or a ``[pools]`` count for each entry of ``units``.
      kept: Bool arrays like ``units``: units that come before all others.

    Returns:
      Bool arrays like ``units``.
    """
    for x in units:
        if x.size >= 2**31:
            raise ValueError(
                f"A leaf holds {x.size} units, of shape {x.shape[1:]}; "
                "selection counts below 2**31 in one leaf."
            )
    if not isinstance(wanted, Count):
        stacked = jax.tree.map(lambda *c: jnp.concatenate(c), *wanted)
        return _select(units, stacked, kept, joint=False)
    # One ranking: pools are units like any others.
    units = [x[None] for x in units]
    kept = kept and [x[None] for x in kept]
    return [mask[0] for mask in _select(units, wanted, kept, joint=True)]


def count_kept(masks: list[jax.Array], *, joint: bool) -> Count:
    """Marked units of each pool in turn, or of all together (a scalar)."""
    return _ranked(jnp.concatenate([_count(x)[0] for x in masks]), joint)


def _ranked(counts: jax.Array, joint: bool) -> Count:
    """Int32 counts of all pools as they are ranked: one by one or together."""
    count = _counts.count_of(counts)
    return _counts.total(count) if joint else count


class _Leaf(NamedTuple):
    """One leaf of units, and what makes a unit a candidate."""

    scores: jax.Array  # [pools, ...] floating
    kept: jax.Array | None  # [pools, ...] bool; None: all are candidates
    grow: jax.Array | None  # bool: the candidates are those not kept


class _Bracket(NamedTuple):
    """Keys ``low < high`` with ``count(low) >= wanted > count(high)``."""

    low: jax.Array  # unsigned, one per pool, or a scalar in one ranking
    high: jax.Array
    at_low: Count  # candidates at or above ``low``
    at_high: Count


@partial(jax.jit, static_argnames="joint")
def _select(
    units: list[jax.Array],
    wanted: Count,
    kept: list[jax.Array] | None,
    *,
    joint: bool,
) -> list[jax.Array]:
    """See :func:`select`; ``wanted`` is a scalar or one count per pool."""
    sizes = [np.full(x.shape[0], x[0].size, np.int64) for x in units]
    full = np.concatenate(sizes)
    available = _counts.count_of(full.sum() if joint else full)
    leaves = [_Leaf(x, None, None) for x in units]
    if kept is not None:
        # Kept units come first: with enough of them the choice is among them,
        # else they all stay and the choice is among the others.
        marked = count_kept(kept, joint=joint)
        grow = _counts.less(marked, wanted)
        rest = _counts.subtract(wanted, marked)
        others = _counts.subtract(available, marked)
        wanted = _counts.where(grow, rest, wanted)
        available = _counts.where(grow, others, marked)
        leaves = list(map(_Leaf, units, kept, _spread(grow, units, joint)))

    wide = any(x.dtype == jnp.float64 for x in units)
    unsigned = np.dtype(np.uint64 if wide else np.uint32)

    def count(*keys: jax.Array) -> list[Count]:
        each = map(_count_scores, leaves, *(per_leaf(key) for key in keys))
        counts = [jnp.concatenate(c) for c in zip(*each, strict=True)]
        return [_ranked(c, joint) for c in counts]

    def per_leaf(values: jax.Array) -> list[jax.Array]:
        return _spread(values, units, joint)

    found = _search(count, wanted, available, unsigned)
    lows, highs = per_leaf(found.low), per_leaf(found.high)

    def divide_ties() -> jax.Array:
        ties = jnp.concatenate(list(map(_count_ties, leaves, lows, highs)))
        missing = _counts.subtract(wanted, found.at_high)
        if joint:  # earlier leaves take theirs first
            missing = _counts.share(missing, _counts.count_of(ties))
        shares = _spread(_counts.to_int32(missing), units, False)
        bounds = map(_tie_bound, leaves, lows, highs, shares)
        return jnp.concatenate(list(bounds))

    bounds = lax.cond(
        jnp.all(_counts.equal(found.at_low, wanted)),
        lambda: jnp.full(full.shape, 2**31, np.uint32),
        divide_ties,
    )
    return list(map(_mask, leaves, lows, highs, _spread(bounds, units, False)))


def _spread(
    values: jax.Array, units: list[jax.Array], joint: bool
) -> list[jax.Array]:
    """What each leaf needs of one value per pool, ready to broadcast."""
    if joint:
        return [values] * len(units)
    pools = [x.shape[0] for x in units]
    if max(pools) == 1:
        # Not by slices: each would be part of its leaf's loop, and 500 leaves
        # of one shape would be compiled 500 times.
        rows = np.eye(len(units), dtype=bool)
        parts = [jnp.sum(values, where=row, keepdims=True) for row in rows]
    else:
        parts = jnp.split(values, np.cumsum(pools)[:-1])
    return [
        part.astype(values.dtype).reshape((-1,) + (1,) * (x.ndim - 1))
        for part, x in zip(parts, units, strict=True)
    ]


def _search(
    count: Callable[..., list[Count]],
    wanted: Count,
    available: Count,
    unsigned: np.dtype[Any],
) -> _Bracket:
    """Finds keys at or above which there are ``wanted`` candidates.

    Each pass over the units counts at three keys: the middle of the bracket, so
    that the search always ends, and two around the place where the wanted key
    would be if those between were evenly spread, so that it ends soon.

    Args:
      count: The candidates at or above each of three keys.
      wanted: How many are wanted.
      available: How many there are.
      unsigned: The dtype of the keys; nothing is at the largest.

    Returns:
      A bracket whose ``low`` has exactly ``wanted`` candidates, or whose ends
      are neighbours.
    """
    real = np.float64 if unsigned.itemsize == 8 else np.float32
    top = np.array(np.iinfo(unsigned).max, unsigned)
    start = _Bracket(
        low=jnp.zeros(wanted.low.shape, unsigned),
        high=jnp.full(wanted.low.shape, top),
        at_low=available,
        at_high=jax.tree.map(jnp.zeros_like, wanted),
    )

    def unfinished(now: _Bracket) -> jax.Array:
        inexact = ~_counts.equal(now.at_low, wanted)
        return jnp.any(inexact & (now.high - now.low > 1))

    def narrow(now: _Bracket) -> _Bracket:
        low, high, at_low, at_high = now
        width = high - low
        inside = _counts.to_float(_counts.subtract(at_low, at_high))
        beyond = _counts.to_float(_counts.subtract(at_low, wanted))
        inside = jnp.maximum(inside, 1)
        guess = (beyond / inside).astype(real)
        margin = lax.rsqrt(inside).astype(real)  # two standard errors
        keys = []
        for place in (
            jnp.full_like(guess, 0.5),
            guess - margin,
            guess + margin,
        ):
            step = jnp.clip(place, 0, 1 - 2**-20) * width.astype(real)
            last = jnp.maximum(width, 2) - 1
            keys.append(low + jnp.clip(step.astype(unsigned), 1, last))
        for key, here in zip(keys, count(*keys), strict=True):
            few = _counts.less(here, wanted)
            up, down = ~few & (key > low), few & (key < high)
            low, high = jnp.where(up, key, low), jnp.where(down, key, high)
            at_low = _counts.where(up, here, at_low)
            at_high = _counts.where(down, here, at_high)
        return _Bracket(low, high, at_low, at_high)

    return lax.while_loop(unfinished, narrow, start)


def _at_least(leaf: _Leaf, key: jax.Array) -> jax.Array:
    """Candidates whose score is at or above a key; NaN is above all, -0 is 0.

    Keys are bit patterns, turned so that they rise with the floats. Scores are
    compared as floats: subnormals are what the backend takes them for, as they
    are in ``jnp.argsort``.
    """
    sign = np.array(1 << (8 * key.dtype.itemsize - 1), key.dtype)
    real = np.dtype(np.float64 if key.dtype.itemsize == 8 else np.float32)
    infinity = np.array(np.inf, real).view(key.dtype)
    turned = jnp.maximum(key, sign - infinity)  # all below -inf is -inf
    bits = jnp.where(turned < sign, sign + (sign - turned), turned - sign)
    limit = lax.bitcast_convert_type(bits, real)  # NaN above inf
    top = np.array(np.iinfo(key.dtype).max, key.dtype)
    x = leaf.scores.astype(real)
    flags = (x >= limit) | ((x != x) & (key < top))
    return flags if leaf.kept is None else flags & (leaf.kept != leaf.grow)


def _count(*flags: jax.Array) -> tuple[jax.Array, ...]:
    """True entries of each pool, of several arrays in one read, int32."""
    return lax.reduce(
        tuple(flag.astype(np.int32) for flag in flags),
        (np.int32(0),) * len(flags),
        lambda a, b: tuple(map(lax.add, a, b)),
        tuple(range(1, flags[0].ndim)),
    )


# What is done per leaf is jitted, to be traced once for all leaves of one shape.


@jax.jit
def _count_scores(leaf: _Leaf, *keys: jax.Array) -> tuple[jax.Array, ...]:
    # Without the barrier the compiler prepares the scores once, outside the
    # loop, and keeps them: a copy of the scores, and no faster.
    leaf, keys = lax.optimization_barrier((leaf, keys))
    return _count(*(_at_least(leaf, key) for key in keys))


@jax.jit
def _count_ties(leaf: _Leaf, low: jax.Array, high: jax.Array) -> jax.Array:
    return _count(_at_least(leaf, low) & ~_at_least(leaf, high))[0]


@jax.jit
def _tie_bound(
    leaf: _Leaf, low: jax.Array, high: jax.Array, share: jax.Array
) -> jax.Array:
    """The flat index in each pool before which ``share`` of the ties lie.

    The index is found axis by axis, from the ties in each slice across the axis:
    no index of all ties, and nothing larger than an axis leaves a device.
    """
    flags = _at_least(leaf, low) & ~_at_least(leaf, high)
    left = share.reshape(-1, 1)
    bound = jnp.zeros_like(left, np.uint32)
    for axis in range(1, flags.ndim):
        others = tuple(a for a in range(1, flags.ndim) if a != axis)
        slices = _replicated(jnp.sum(flags, axis=others, dtype=np.int32))
        before = jnp.cumsum(slices, axis=1) - slices
        # The slice that holds the last wanted tie: the last with fewer before.
        place = (
            jnp.sum(before < left, axis=1, keepdims=True, dtype=np.int32) - 1
        )
        place = jnp.maximum(place, 0)
        left -= jnp.take_along_axis(before, place, axis=1)
        here = place.reshape((-1,) + (1,) * (flags.ndim - 1))
        flags &= lax.broadcasted_iota(np.int32, flags.shape, axis) == here
        stride = np.prod(flags.shape[axis + 1 :], dtype=np.uint32)
        bound += place.astype(np.uint32) * stride
    return jnp.where(share.reshape(-1, 1) > 0, bound + 1, 0)[:, 0]


def _replicated(x: jax.Array) -> jax.Array:
    """``x`` on every device, where axes of an Explicit mesh divide it."""
    if any(jax.typeof(x).sharding.spec):
        return jax.sharding.reshard(x, jax.P(*(None,) * x.ndim))
    return x


@jax.jit
def _mask(
    leaf: _Leaf, low: jax.Array, high: jax.Array, bound: jax.Array
) -> jax.Array:
    """What was kept and is no candidate, scores above, the first of the ties."""
    shape = leaf.scores.shape
    index, stride = jnp.zeros(shape, np.uint32), 1
    for axis in range(len(shape) - 1, 0, -1):
        place = lax.broadcasted_iota(np.uint32, shape, axis)
        index += place * np.uint32(stride)
        stride *= shape[axis]
    above = _at_least(leaf, high) | (index < bound)
    best = _at_least(leaf, low) & above
    return best if leaf.kept is None else best | (leaf.kept & leaf.grow)
