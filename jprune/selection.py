"""Which units stay: exact selection of the k best, by counting.

Floats order like their bit patterns, so the k-th largest score is found by
bracketing it: count the scores at or under a few keys, keep the keys next to
the wanted count, go on. A sample says where to begin. No sort, no
concatenation; on a mesh only counts travel.
"""

import math
from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jprune import _counts
from jprune._checks import check_floating, check_number, is_traced
from jprune._counts import Count
from jprune._cuts import (
    Leaf,
    count_at_most,
    count_candidates,
    count_true,
    count_under,
    find_ends,
    mark,
)
from jprune._search import search
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


def count_kept(masks: list[jax.Array], *, joint: bool) -> jax.Array:
    """Marked units, int32: of each leaf if ``joint``, else of all its pools."""
    one = _one_pool if joint else lambda x: x
    return jnp.concatenate([count_true(one(x)) for x in masks])


class _Plan(NamedTuple):
    """How values go to the leaves, and counts come back.

    An *entry* is what one leaf has of one pool; entries follow each other leaf
    after leaf. Each is a pool of its own; or, if ``joint``, all are one pool.
    """

    joint: bool
    pools: tuple[int, ...]  # of each leaf

    def pooled(self, each: jax.Array) -> Count:
        """Counts ``[..., entries]`` to those of pools, ``[..., pools]``."""
        counts = _counts.count_of(each)
        if not self.joint:
            return counts
        first = jax.tree.map(lambda c: jnp.moveaxis(c, -1, 0), counts)
        return jax.tree.map(lambda c: c[..., None], _counts.total(first))

    def joined(self, counts: Iterable[list[jax.Array]]) -> jax.Array:
        """Some counts ``[pools]`` of each leaf to ``[counts, entries]``."""
        each = list(counts)
        if set(self.pools) != {1}:
            pairs = zip(*each, strict=True)
            return jnp.stack([jnp.concatenate(c) for c in pairs])
        # One concatenation, not one per count: it compiles much faster.
        flat = jnp.concatenate([c for leaf in each for c in leaf])
        return flat.reshape(len(each), -1).T

    def ends(self, each: Iterable[list[jax.Array]]) -> list[jax.Array]:
        """The least and the highest ``[pools]``, from those of each leaf."""
        least, most = self.joined(each)
        if not self.joint:
            return [least, most]
        return [least.min(keepdims=True), most.max(keepdims=True)]

    def parts(self, values: jax.Array) -> list[jax.Array]:
        """``[..., entries]`` cut into one array for each leaf."""
        pools = self.pools
        if set(pools) != {1} or len(pools) == 1:
            return jnp.split(values, np.cumsum(pools)[:-1], axis=-1)
        # By sums and not by slices: each slice is compiled for itself, and takes
        # as long as a loop over a leaf; sums are all the same program.
        return [
            jnp.sum(values, -1, where=row, keepdims=True).astype(values.dtype)
            for row in np.eye(len(pools), dtype=bool)
        ]


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
    plan = _Plan(joint, tuple(x.shape[0] for x in units))
    leaves = [Leaf(x, None, None) for x in units]
    available = jnp.concatenate(list(map(count_candidates, leaves)))
    if kept is not None:
        # Kept units come first: with enough of them the choice is among them,
        # else they all stay and the choice is among the others.
        marked = count_kept(kept, joint=False) if marked is None else marked
        total = plan.pooled(marked)
        grow = _counts.less(total, wanted)
        rest = _counts.subtract(wanted, total)
        wanted = _counts.where(grow, rest, wanted)
        available = jnp.where(grow, available - marked, marked)
        each = jnp.broadcast_to(grow, available.shape)
        leaves = list(map(Leaf, units, kept, plan.parts(each)))
    lost = _counts.subtract(plan.pooled(available), wanted)
    return list(map(mark, leaves, _find_cut(plan, leaves, lost, available)))


def _find_cut(
    plan: _Plan, leaves: list[Leaf], lost: Count, available: jax.Array
) -> list[jax.Array]:
    """The cut under which lie the ``lost`` candidates of each pool."""
    wide = any(x.scores.dtype == jnp.float64 for x in leaves)
    dtype = np.uint64 if wide else np.uint32

    def find(
        some: list[Leaf], lost: Count, available: jax.Array, **how: Any
    ) -> Any:
        its = plan._replace(pools=tuple(x.scores.shape[0] for x in some))

        def all_under(cuts: list[jax.Array]) -> jax.Array:
            return its.joined(map(count_under, some, cuts))

        def at_most(cuts: list[jax.Array]) -> jax.Array:
            return its.joined(map(count_at_most, some, cuts))

        def count(cuts: list[jax.Array], ties: jax.Array) -> jax.Array:
            # Comparing scores alone is faster, but twice as much to compile.
            if len(leaves) > 16:
                return all_under(cuts)
            return lax.cond(ties, all_under, at_most, cuts)

        size = max(math.prod(x.scores.shape[1:]) for x in some)
        if "hint" not in how and len(some) <= 16:
            how["ends"] = its.ends(find_ends(x, dtype) for x in some)
        return search(
            count,
            its.parts,
            plan.pooled,
            lost,
            available,
            size,
            dtype,
            **how,
        )

    points = 7 if len(leaves) <= 16 else 3
    some = _sample(plan, leaves)
    if not some:
        return find(leaves, lost, available, points=points)[0]
    # The wanted key of a sample is most likely near that of all; how near, the
    # standard error says.
    here = jnp.concatenate(list(map(count_candidates, some)))
    most, part = plan.pooled(here), _counts.to_float(lost)
    whole = _counts.to_float(plan.pooled(available))
    seen = _counts.to_float(most)
    middle = seen * part / jnp.maximum(whole, 1)
    rest = jnp.maximum(seen - middle, 0) / jnp.maximum(seen, 1)
    margin = 1 + 2 * jnp.sqrt(middle * rest)
    rank = _counts.count_of(middle.astype(np.int32))
    hint = find(some, rank, here, points=7, enough=margin)[1]
    return find(leaves, lost, available, points=points, hint=hint)[0]


def _sample(plan: _Plan, leaves: list[Leaf]) -> list[Leaf]:
    """About one in 64 units of the largest leaves, at most 2**17; [] if few.

    Regular slices, and none across devices. A bad sample costs passes, and
    nothing else. Where leaves are pools of their own, each is sampled.
    """
    if plan.joint:
        leaves = sorted(leaves, key=lambda x: -x.scores.size)[:16]
    elif sum(plan.pools) > 16:
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
    elif jax.device_count() > 1:
        # The axis may be divided, by up to 64: a divisor of the smallest part.
        most = 2 ** (most.bit_length() - 1)
        whole = math.gcd(n // 64, most) if n % 64 == 0 else 1
    return max(1, min(most, whole))
