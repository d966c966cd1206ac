"""Which units stay: exact selection of the k best, by counting.

Floats order like their bit patterns, so the k-th largest score is found by
bracketing it: count the scores at or under a few keys, keep the keys next to
the wanted count, go on. A sample says where to begin. No sort, no
concatenation; on a mesh only counts travel.
"""

import math
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

    Cost: a few passes that count and one that writes the mask; more with scores
    that no interpolation fits, and if equal scores must be divided.

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
    # One ranking is one pool; what were pools are units like any others.
    units = [x[None] for x in units]
    kept = kept and [x[None] for x in kept]
    wanted = jax.tree.map(lambda x: x[None], wanted)
    return [mask[0] for mask in _select(units, wanted, kept, joint=True)]


def count_kept(masks: list[jax.Array], *, joint: bool) -> Count:
    """Marked units of each pool in turn, or of all together (a scalar)."""
    counts = jnp.concatenate([_count(x)[0] for x in masks])
    count = _counts.count_of(counts)
    return _counts.total(count) if joint else count


class _Leaf(NamedTuple):
    """One leaf of units, and what makes a unit a candidate."""

    scores: jax.Array  # [pools, ...] floating
    kept: jax.Array | None  # [pools, ...] bool; None: all are candidates
    grow: jax.Array | None  # [pools] bool: the candidates are those not kept


class _Bracket(NamedTuple):
    """Keys ``low < high`` with ``under_low <= lost <= under_high``."""

    low: jax.Array  # [pools] unsigned
    high: jax.Array
    under_low: Count  # [pools] candidates at or under ``low``
    under_high: Count


_Counter = Callable[[jax.Array], list[Count]]


class _Plan(NamedTuple):
    """How values of all pools go to the leaves, and counts come back.

    Pools follow each other leaf after leaf; or, if ``joint``, there is one.
    """

    joint: bool
    pools: tuple[int, ...]  # of each leaf

    def rows(self, arrays: list[jax.Array]) -> list[list[jax.Array]]:
        """The rows of each array, sliced once where leaves share them."""
        if self.joint:
            return [list(arrays[0])] * len(arrays)
        return [list(x) for x in arrays]

    def spread(self, values: jax.Array) -> list[jax.Array]:
        """``[..., pools]`` to one array for each leaf."""
        if self.joint:
            return [values] * len(self.pools)
        return _parts(values, self.pools)

    def each(self, counts: list[list[jax.Array]]) -> jax.Array:
        """``[counts, leaves, pools]``, where one pool may have many leaves."""
        if not self.joint:
            pairs = zip(*counts, strict=True)
            return jnp.stack([jnp.concatenate(c) for c in pairs])[:, None]
        # One concatenation, not one per count: it compiles much faster.
        flat = jnp.concatenate([c for leaf in counts for c in leaf])
        return jnp.swapaxes(flat.reshape(len(counts), len(counts[0]), 1), 0, 1)

    def sums(self, counts: list[list[jax.Array]]) -> list[Count]:
        """For each of some counts of each leaf, those of all pools."""
        each = jnp.swapaxes(self.each(counts), 0, 1)
        total = _counts.total(_counts.count_of(each))
        return [Count(*x) for x in zip(*total, strict=True)]


def _parts(values: jax.Array, pools: tuple[int, ...]) -> list[jax.Array]:
    """``[..., sum(pools)]`` cut into one array for each leaf."""
    if max(pools) > 1 or len(pools) == 1:
        return jnp.split(values, np.cumsum(pools)[:-1], axis=-1)
    # By sums and not by slices: a slice becomes part of its leaf's loop, which
    # then is compiled for every leaf, and not once for all of one shape.
    return [
        jnp.sum(values, -1, where=row, keepdims=True).astype(values.dtype)
        for row in np.eye(len(pools), dtype=bool)
    ]


@partial(jax.jit, static_argnames="joint")
def _select(
    units: list[jax.Array],
    wanted: Count,
    kept: list[jax.Array] | None,
    *,
    joint: bool,
) -> list[jax.Array]:
    """See :func:`select`; ``wanted`` has an entry for each pool."""
    plan = _Plan(joint, tuple(x.shape[0] for x in units))
    sizes = [np.full(x.shape[0], x[0].size, np.int64) for x in units]
    full = sum(sizes) if joint else np.concatenate(sizes)
    available = _counts.count_of(full)
    leaves = [_Leaf(x, None, None) for x in units]
    if kept is not None:
        # Kept units come first: with enough of them the choice is among them,
        # else they all stay and the choice is among the others.
        marked = plan.sums([_count(x) for x in kept])[0]
        grow = _counts.less(marked, wanted)
        rest = _counts.subtract(wanted, marked)
        others = _counts.subtract(available, marked)
        wanted = _counts.where(grow, rest, wanted)
        available = _counts.where(grow, others, marked)
        leaves = list(map(_Leaf, units, kept, plan.spread(grow)))

    lost = _counts.subtract(available, wanted)
    found, asked = _threshold(plan, leaves, lost, available)
    limits = plan.rows(plan.spread(asked[-2:]))

    def divide_ties() -> jax.Array:
        above = _counts.subtract(available, found.under_high)
        missing = _counts.subtract(wanted, above)
        return _tie_bounds(plan, leaves, limits, missing)

    bounds = lax.cond(
        jnp.all(_counts.equal(found.under_low, lost)),
        lambda: jnp.full(sum(plan.pools), 2**31, np.uint32),
        divide_ties,
    )
    return list(map(_mask, leaves, limits, _parts(bounds, plan.pools)))


def _threshold(
    plan: _Plan, leaves: list[_Leaf], lost: Count, available: Count
) -> tuple[_Bracket, jax.Array]:
    """Finds the key under which lie the ``lost`` candidates of each pool."""
    wide = any(x.scores.dtype == jnp.float64 for x in leaves)
    unsigned = np.dtype(np.uint64 if wide else np.uint32)
    sign, infinity = _landmarks(unsigned)
    start = _Bracket(
        low=jnp.full(lost.low.shape, sign - infinity - 1),
        high=jnp.full(lost.low.shape, sign + infinity + 1),
        under_low=jax.tree.map(jnp.zeros_like, lost),
        under_high=available,
    )

    def counter(leaves: list[_Leaf]) -> _Counter:
        def count(limits: jax.Array) -> list[Count]:
            rows = plan.rows(plan.spread(limits))
            return plan.sums(list(map(_count_under, leaves, rows)))

        return count

    points = 7 if len(leaves) <= 16 else 3
    some = _sample(plan, leaves)
    if not some:
        return _search(counter(leaves), _limits, lost, start, points)
    # The bracket that holds the wanted key in a sample, three standard errors
    # to each side, most likely holds it in all.
    if some[0].kept is not None:
        most = plan.sums([_count(_candidates(x)) for x in some])[0]
    else:
        sizes = [np.full(len(x.scores), x.scores[0].size) for x in some]
        most = _counts.count_of(sum(sizes) if plan.joint else sizes[0])
    seen, part = _counts.to_float(most), _counts.to_float(lost)
    middle = seen * part / jnp.maximum(_counts.to_float(available), 1)
    rest = jnp.maximum(seen - middle, 0) / jnp.maximum(seen, 1)
    margin = 1 + 3 * jnp.sqrt(middle * rest)
    ends = []
    for place in (middle - margin, middle + margin):
        rank = _counts.count_of(jnp.clip(place, 0, seen).astype(np.int32))
        begin = start._replace(under_high=most)
        ends.append(_search(counter(some), _limits, rank, begin, 7)[0])
    hint = ends[0].low, ends[1].high
    return _search(counter(leaves), _limits, lost, start, points, hint)


def _sample(plan: _Plan, leaves: list[_Leaf]) -> list[_Leaf]:
    """About one in 64 units of the largest leaves, at most 2**17; [] if few.

    Regular slices, and none across devices. A bad sample costs passes, and
    nothing else.
    """
    if not plan.joint and len(leaves) > 1:
        return []  # every leaf would need its own
    leaves = sorted(leaves, key=lambda x: -x.scores.size)[:16]
    size = sum(x.scores.size for x in leaves)
    if size < 2**18 * leaves[0].scores.shape[0]:
        return []
    some = []
    for leaf in leaves:
        left, slices = max(64, size >> 17), [slice(None)]
        shape, spec = leaf.scores.shape, jax.typeof(leaf.scores).sharding.spec
        for axis in range(1, len(shape)):
            free = spec[axis] is None and left > 1
            rest = axis + 1 == len(shape)
            most = shape[axis] if rest else shape[axis] // 64
            stride = min(left, max(most, 1)) if free else 1
            slices.append(slice(None, None, stride))
            left //= stride
        if left == 1:
            kept = None if leaf.kept is None else leaf.kept[*slices]
            some.append(leaf._replace(scores=leaf.scores[*slices], kept=kept))
    return some


def _search(
    count: _Counter,
    look: Callable[[jax.Array], jax.Array],
    lost: Count,
    start: _Bracket,
    points: int,
    hint: tuple[jax.Array, jax.Array] | None = None,
) -> tuple[_Bracket, jax.Array]:
    """Finds the key at or under which there are ``lost`` candidates.

    Each pass over the units counts at a few keys: around the place where the
    wanted key would be if those in the bracket were evenly spread, so that the
    search ends soon, or across the bracket, so that it always ends.

    Args:
      count: The candidates at or under each of some keys, but the last two.
      look: What ``count`` takes for some keys.
      lost: How many are wanted.
      start: What to begin with; its ends are not asked for.
      points: How many keys to ask for in one pass.
      hint: Between which keys to look first.

    Returns:
      A bracket whose ``low`` has exactly ``lost`` candidates, or whose ends
      are neighbours; and what ``look`` makes of the last keys, its ends last.
    """
    real = np.float64 if start.low.dtype.itemsize == 8 else np.float32
    spots = np.arange(points, dtype=real)

    def unfinished(now: Any) -> jax.Array:
        here = now[0]
        inexact = ~_counts.equal(here.under_low, lost)
        return jnp.any(inexact & (here.high - here.low > 1))

    def across(low: jax.Array, high: jax.Array, first: Any, step: Any) -> Any:
        width = high - low
        places = jnp.clip(first + step * spots[:, None], 0, 1)
        keys = (places * width.astype(real)).astype(low.dtype)
        return low + jnp.minimum(keys, width)

    # Keys go through the loop as the leaves need them: else the making of them
    # becomes part of every leaf's loop.
    def ready(now: _Bracket, keys: jax.Array, turn: Any) -> Any:
        keys = jnp.clip(keys, now.low + 1, now.high - 1)
        asked = look(jnp.concatenate([keys, now.low[None], now.high[None]]))
        return now, keys, asked, turn

    def narrow(now: Any) -> Any:
        (low, high, under_low, under_high), keys, asked, turn = now
        for key, here in zip(keys, count(asked), strict=True):
            few = ~_counts.less(lost, here)
            up, down = few & (key > low), ~few & (key < high)
            low, high = jnp.where(up, key, low), jnp.where(down, key, high)
            under_low = _counts.where(up, here, under_low)
            under_high = _counts.where(down, here, under_high)
        inside = _counts.to_float(_counts.subtract(under_high, under_low))
        beyond = _counts.to_float(_counts.subtract(lost, under_low))
        inside = jnp.maximum(inside, 1).astype(real)
        # Half a unit further: between this unit and the next.
        guess = jnp.minimum((beyond.astype(real) + 0.5) / inside, 1)
        even, half = 1 / (points + 1), points // 2
        error = 2 * jnp.sqrt(guess * (1 - guess) / inside)
        step = jnp.minimum(error / half, even)
        step = jnp.where((turn > 4) & (turn % 2 == 1), even, step)
        edge = step * (half + 1)
        first = jnp.clip(guess, edge, 1 - edge) - step * half
        keys = across(low, high, first, step)
        return ready(_Bracket(low, high, under_low, under_high), keys, turn + 1)

    if hint is None:
        keys = across(start.low, start.high, 1 / (points + 1), 1 / (points + 1))
    else:
        keys = across(*hint, 0, 1 / (points - 1)).at[-1].set(hint[1])
    found, _, asked, _ = lax.while_loop(
        unfinished, narrow, ready(start, keys, 0)
    )
    return found, asked


def _tie_bounds(
    plan: _Plan,
    leaves: list[_Leaf],
    limits: list[list[jax.Array]],
    missing: Count,
) -> jax.Array:
    """For each pool of each leaf the flat index before which ties are taken.

    Leaf after leaf takes all or none of its ties, but for one in each pool; in
    that one the index is searched for like a key.
    """
    under = plan.each(list(map(_count_ends, leaves, limits)))
    ties = under[1] - under[0]
    shares = _counts.to_int32(_counts.share(missing, _counts.count_of(ties)))
    divided = (shares > 0) & (shares < ties)

    def here(values: jax.Array) -> Count:
        return _counts.count_of(jnp.sum(values, 0, np.int32, where=divided))

    def count(indices: jax.Array) -> list[Count]:
        rows = plan.rows(plan.spread(indices))
        each = plan.each(list(map(_count_ties, leaves, limits, rows)))
        return list(map(here, each))

    size = max(x.scores[0].size for x in leaves)
    start = _Bracket(
        low=jnp.zeros(missing.low.shape, np.uint32),
        high=jnp.full(missing.low.shape, size, np.uint32),
        under_low=here(jnp.zeros_like(ties)),
        under_high=here(ties),
    )
    bound = _search(count, lambda x: x, here(shares), start, 2)[0].low
    whole = jnp.where(shares > 0, np.uint32(2**31), np.uint32(0))
    bounds = jnp.where(divided, bound, whole)
    return bounds[:, 0] if plan.joint else bounds[0]


def _landmarks(dtype: np.dtype[Any]) -> tuple[Any, Any]:
    """The key of 0, and how far from it the keys of infinity are."""
    real = np.dtype(np.float64 if dtype.itemsize == 8 else np.float32)
    sign = np.array(1, dtype) << np.array(8 * dtype.itemsize - 1, dtype)
    return sign, np.array(np.inf, real).view(dtype)


def _limits(keys: jax.Array) -> jax.Array:
    """The floats that keys stand for; beyond the infinities they are NaN.

    Keys are bit patterns, turned so that they rise with the floats.
    """
    sign, _ = _landmarks(keys.dtype)
    real = np.dtype(np.float64 if keys.dtype.itemsize == 8 else np.float32)
    bits = jnp.where(keys < sign, sign + (sign - keys), keys - sign)
    return lax.bitcast_convert_type(bits, real)


def _wide(values: jax.Array, leaf: _Leaf) -> jax.Array:
    """A value per pool, to broadcast over the pool's units."""
    return values.reshape((-1,) + (1,) * (leaf.scores.ndim - 1))


def _under(leaf: _Leaf, limit: jax.Array) -> jax.Array:
    """Which scores are at or under a limit; NaN is above all, -0 is 0.

    Scores are compared as floats: subnormals are what the backend takes them
    for, as they are in ``jnp.argsort``.
    """
    return leaf.scores.astype(limit.dtype) <= _wide(limit, leaf)


def _under_end(leaf: _Leaf, limit: jax.Array) -> jax.Array:
    """The same for the high end of a bracket: all is under NaN."""
    return _under(leaf, limit) | _wide(jnp.isnan(limit), leaf)


def _candidates(leaf: _Leaf, flags: jax.Array | bool = True) -> jax.Array:
    """Those of ``flags`` between which is chosen."""
    if leaf.kept is None or leaf.grow is None:
        return jnp.asarray(flags)
    return flags & (leaf.kept != _wide(leaf.grow, leaf))


def _count(*flags: jax.Array) -> list[jax.Array]:
    """True entries of each pool, of several arrays in one read, int32."""
    if len(flags) == 1:
        # The compiler splits a sum of one array, and stores what is summed.
        flags = flags[0], ~flags[0]
        return list(lax.optimization_barrier(tuple(_count(*flags))))[:1]
    shape = flags[0].shape
    # Rows first, if they are long: the CPU backend shares out what is summed to
    # several numbers among its threads.
    rows = shape[0] == 1 and np.prod(shape[2:], dtype=int) >= 512
    counts = lax.reduce(
        tuple(flag.astype(np.int32) for flag in flags),
        (np.int32(0),) * len(flags),
        lambda a, b: tuple(map(lax.add, a, b)),
        tuple(range(2 if rows else 1, len(shape))),
    )
    if rows:
        return [jnp.sum(c, axis=1, dtype=np.int32) for c in counts]
    return list(counts)


def _before(leaf: _Leaf, bound: jax.Array) -> jax.Array:
    """Whether the flat index in the pool is below a bound."""
    # Axis by axis and with no flat index: the compiler would prepare that
    # outside a loop, and keep it.
    shape, edges = leaf.scores.shape, []
    for axis in range(1, len(shape)):
        stride = np.uint32(max(math.prod(shape[axis + 1 :]), 1))
        edges.append(_wide(lax.div(bound, stride), leaf))
        bound = lax.rem(bound, stride)
    here = _wide(bound, leaf) > 0
    for axis in range(len(shape) - 1, 0, -1):
        place = lax.broadcasted_iota(np.uint32, shape, axis)
        edge = edges[axis - 1]
        here = (place < edge) | ((place == edge) & here)
    return here


# What is done per leaf is jitted, to be traced once for all leaves of one shape.


@jax.jit
def _count_under(leaf: _Leaf, limits: list[jax.Array]) -> list[jax.Array]:
    if leaf.kept is not None or leaf.scores.dtype != limits[0].dtype:
        # Without the barrier the compiler prepares the scores once, outside
        # the loop, and keeps them: a copy of the scores, and no faster.
        leaf, limits = lax.optimization_barrier((leaf, limits))
    flags = (_under(leaf, limit) for limit in limits[:-2])
    return _count(*(_candidates(leaf, x) for x in flags))


@jax.jit
def _count_ends(leaf: _Leaf, limits: list[jax.Array]) -> list[jax.Array]:
    ends = _under(leaf, limits[-2]), _under_end(leaf, limits[-1])
    return _count(*(_candidates(leaf, x) for x in ends))


@jax.jit
def _count_ties(
    leaf: _Leaf, limits: list[jax.Array], bounds: list[jax.Array]
) -> list[jax.Array]:
    """Candidates in the bracket before some flat indices."""
    leaf, limits, bounds = lax.optimization_barrier((leaf, limits, bounds))
    ties = ~_under(leaf, limits[-2]) & _under_end(leaf, limits[-1])
    ties = _candidates(leaf, ties)
    return _count(*(ties & _before(leaf, bound) for bound in bounds[:-2]))


@jax.jit
def _mask(leaf: _Leaf, limits: list[jax.Array], bound: jax.Array) -> jax.Array:
    """What was kept and is no candidate, scores above, the first of the ties."""
    above = ~_under_end(leaf, limits[-1]) | _before(leaf, bound)
    best = ~_under(leaf, limits[-2]) & above
    if leaf.kept is None or leaf.grow is None:
        return best
    grow = _wide(leaf.grow, leaf)
    return jnp.where(grow, leaf.kept | best, leaf.kept & best)
