"""Which units stay: exact selection of the k best, by counting.

Floats order like their bit patterns, so the k-th largest score is found by
bracketing it: count the scores at or under a few keys, keep the keys next to
the wanted count, go on. A sample says where to begin. No sort, no
concatenation; on a mesh only counts travel.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune import _counts
from jprune._checks import check_floating, check_number, is_traced
from jprune._counts import Count
from jprune._describe import describe
from jprune._divide import divide
from jprune._kernels import (
    Leaf,
    count_at_most,
    count_candidates,
    count_divided,
    count_true,
    find_ends,
    mark,
    rows_of,
)
from jprune._keys import bits_of, full_range, outside
from jprune._layout import on_mesh
from jprune._plan import Plan, not_before, plan_of
from jprune._search import Bracket, aim, around, evenly, search
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
    arrays = [jnp.asarray(x) for _, x in leaves if not is_hole(x)]
    wanted = _checked_k(k, sum(x.size for x in arrays))
    masks = iter(_top(arrays, wanted) if arrays else [])
    return rebuild(
        scores, [x if is_hole(x) else next(masks) for _, x in leaves]
    )


@jax.jit  # else the axis of pools would be a copy of the scores
def _top(scores: list[jax.Array], wanted: Count) -> list[jax.Array]:
    """The best of all, as one pool."""
    return [mask[0] for mask in select([x[None] for x in scores], wanted)]


def _checked_k(k: Any, size: int) -> Count:
    """``k`` as a count; clipped if it is traced."""
    if is_traced(k):
        if k.ndim or not jnp.issubdtype(k.dtype, jnp.integer):
            raise ValueError(
                f"`top_k_mask(scores, k)`: k must be an integer scalar, got "
                f"{describe(k)}."
            )
        wanted = _counts.count_of(jnp.maximum(k, 0))
        most = _counts.count_of(size)
        return _counts.where(_counts.less(most, wanted), most, wanted)
    number = check_number("`top_k_mask(scores, k)`: k", k)
    if not number.is_integer() or not 0 <= number <= size:
        raise ValueError(
            "`top_k_mask(scores, k)`: k must be an integer from 0 to "
            f"{size}, the number of scores, got {k}."
        )
    return _counts.count_of(int(k))


def select(
    units: list[jax.Array],
    wanted: Count | jax.Array,
    kept: list[jax.Array] | None = None,
    marked: jax.Array | None = None,
) -> list[jax.Array]:
    """Marks the best units of each pool, or of all pools in one ranking.

    Args:
      units: Scores; axis 0 of each indexes pools, the others units.
      wanted: How many to mark: a scalar :class:`Count` for one ranking of all
        units, or int32 numbers for the pools of each leaf in turn.
      kept: Bool arrays like ``units``: units that come before all others.
      marked: :func:`count_kept` of ``kept``, if it is known.

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
        each = _counts.count_of(wanted)
        return _select(units, each, kept, marked, joint=False)
    # One ranking is one pool; what were pools are units like any others.
    masks = _select(
        list(map(_one_pool, units)),
        jax.tree.map(lambda x: x[None], wanted),
        kept and list(map(_one_pool, kept)),
        marked,
        joint=True,
    )
    return [
        mask if len(x) == 1 else mask[0]
        for x, mask in zip(units, masks, strict=True)
    ]


def _one_pool(units: jax.Array) -> jax.Array:
    return units if len(units) == 1 else units[None]


@partial(jax.jit, static_argnames="joint")
def count_kept(masks: list[jax.Array], *, joint: bool) -> jax.Array:
    """Marked units, int32: of each leaf if ``joint``, else of all its pools."""
    leaves = list(map(_one_pool, masks)) if joint else masks
    return plan_of(leaves, joint=joint).read(count_true, leaves)[0]


@partial(jax.jit, static_argnames="joint")
def _select(
    units: list[jax.Array],
    wanted: Count,
    kept: list[jax.Array] | None,
    marked: jax.Array | None,
    *,
    joint: bool,
) -> list[jax.Array]:
    """See :func:`select`; ``wanted`` has an entry for each pool."""
    stay: Sequence[jax.Array | None] = kept or [None] * len(units)
    leaves = list(map(Leaf, units, stay))
    plan = plan_of(leaves, joint=joint)
    if not any(plan.entries):
        return [jnp.zeros(x.shape, bool) for x in units]
    sizes = [math.prod(x.shape[1:]) for x in units]
    # Zero of the scores' mesh and batch: a loop must not start from what is of
    # none, where `vmap` is over a divided axis of an Explicit mesh.
    zero = 0 * jnp.sum(jnp.isnan(units[0]), dtype=np.int32)
    available = zero + np.repeat(sizes, plan.entries).astype(np.int32)
    grow = jnp.zeros(1, bool)
    if kept is not None:
        # Kept units come first: with enough of them the choice is among them,
        # else they all stay and the choice is among the others.
        marked = count_kept(kept, joint=False) if marked is None else marked
        total = plan.pooled(marked)
        grow = _counts.less(total, wanted)
        rest = _counts.subtract(wanted, total)
        wanted = _counts.where(grow, rest, wanted)
        available = jnp.where(grow, available - marked, marked)
    lost = _counts.subtract(plan.pooled(available), wanted)
    wide = any(x.dtype == jnp.float64 for x in units)
    start = _Start(grow, available, np.uint64 if wide else np.uint32)
    asked = _find_last(plan, leaves, lost, start)
    return list(map(mark, leaves, plan.to_leaves(asked)))


class _Start(NamedTuple):
    """What is known before the first pass."""

    grow: jax.Array  # [pools] or [1] bool: the choice is among the not kept
    available: jax.Array  # [entries] int32: between how many
    dtype: Any  # of keys, unsigned, as wide as the widest score


def _find_last(
    plan: Plan, leaves: list[Leaf], lost: Count, start: _Start
) -> jax.Array:
    """Of the last units that go, what :func:`mark` must know."""
    hint = _guess(plan, leaves, lost, start)
    now, _ = _find_scores(plan, leaves, lost, start, hint)
    size = max(math.prod(x.scores.shape[1:]) for x in leaves)
    division, ties = divide(now, plan.pooled, lost, size)

    def count(rows: jax.Array) -> jax.Array:
        # Else indices would be made outside the loop, and kept.
        blocks = plan.to_blocks(rows)
        return not_before(
            rows, partial(plan.read, count_divided, leaves, blocks)
        )

    now, _ = search(
        lambda keys: division.rows(keys, start.grow),
        count,
        plan.pooled,
        lost,
        ties,
        aim(ties, plan.pooled, lost, plan.points),
    )
    return division.rows(now.low[None], start.grow)


def _find_scores(
    plan: Plan,
    leaves: list[Leaf],
    lost: Count,
    start: _Start,
    first: jax.Array | None = None,
    enough: Any = None,
) -> tuple[Bracket, jax.Array]:
    """The bracket of the last scores that go, see :func:`search`."""
    low, high = full_range(start.dtype)
    if first is None:
        if not plan.many:
            find = partial(find_ends, dtype=start.dtype)
            each = plan.read(find, leaves, plan.to_blocks(start.grow))
            least, most = outside(*plan.ends(each))
            high = jnp.clip(most + 1, low + 1, high)
            low = jnp.clip(least - 1, low, high - 1)
        first = evenly(low, high, plan.points)
    none = jnp.zeros_like(start.available)
    return search(
        lambda keys: rows_of(bits_of(keys), start.grow),
        lambda rows: plan.read(count_at_most, leaves, plan.to_blocks(rows)),
        plan.pooled,
        lost,
        Bracket(low, high, none, start.available),
        first,
        enough,
    )


def _guess(
    plan: Plan, leaves: list[Leaf], lost: Count, start: _Start
) -> jax.Array | None:
    """Keys around that of the last score in a sample, ``[points, pools]``.

    The wanted one is most likely near; how near, the standard error says.
    """
    some = _sample(plan, leaves)
    if not some:
        return None
    its = plan_of(some, joint=plan.joint)
    here = its.read(count_candidates, some, its.to_blocks(start.grow))[0]
    most, part = its.pooled(here), _counts.to_float(lost)
    whole = _counts.to_float(plan.pooled(start.available))
    seen = _counts.to_float(most)
    middle = seen * part / jnp.maximum(whole, 1)
    rest = jnp.maximum(seen - middle, 0) / jnp.maximum(seen, 1)
    margin = 1 + 2 * jnp.sqrt(middle * rest)
    rank = _counts.count_of(middle.astype(np.int32))
    start = start._replace(available=here)
    near, gap = _find_scores(its, some, rank, start, enough=margin)
    left = _counts.subtract(rank, its.pooled(near.under_low))
    return around(near.low, gap, _counts.to_float(left), margin, plan.points)


def _sample(plan: Plan, leaves: list[Leaf]) -> list[Leaf]:
    """About one in 64 units of the largest leaves, at most 2**17; [] if few.

    Regular slices, and none across devices. A bad sample costs passes, and
    nothing else. Where leaves are pools of their own, each is sampled.
    """
    if plan.joint:
        leaves = sorted(leaves, key=lambda x: -x.scores.size)[:16]
    elif sum(plan.entries) > 16:
        return []
    size = sum(x.scores.size for x in leaves)
    if size < 2**18:
        return []
    some = []
    for leaf in leaves:
        part = size if plan.joint else leaf.scores.size
        left = max(64, size >> 17) if part >= 2**16 else 1
        slices: list[Any] = [slice(None)]
        for axis in range(1, leaf.scores.ndim):
            stride = _stride(leaf.scores, axis, left)
            slices.append(slice(None, None, stride))
            left //= stride
        if left <= 8:  # of up to an eighth of all
            kept = None if leaf.kept is None else leaf.kept[*slices]
            some.append(leaf._replace(scores=leaf.scores[*slices], kept=kept))
    return some if plan.joint or len(some) == len(leaves) else []


def _stride(x: jax.Array, axis: int, most: int) -> int:
    """How far apart the positions of a sample lie, so that none need travel."""
    sharding, n = jax.typeof(x).sharding, x.shape[axis]
    whole = n if axis + 1 == x.ndim else n // 64
    if sharding.mesh.are_all_axes_explicit:
        whole = whole if sharding.spec[axis] is None else 1
    elif on_mesh(x):
        # The axis may be divided, by up to 64: a divisor of the smallest part.
        most = 2 ** (most.bit_length() - 1)
        whole = math.gcd(n // 64, most) if n % 64 == 0 else 1
    return max(1, min(most, whole))
