"""Which units stay: exact selection of the k best, by counting.

Floats order like their bit patterns, so the k-th largest score is found by
bracketing it: count the scores at or under a few keys, keep the keys next to
the wanted count, go on. A sample says where to begin. No sort, no
concatenation; on a mesh only counts travel.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jprune import _counts
from jprune._checks import check_floating, check_number, is_traced
from jprune._counts import Count
from jprune._describe import describe
from jprune._kernels import among, count_true, in_rows, mark
from jprune._layout import on_mesh
from jprune._plan import at_once, plan_of, split
from jprune._ranking import places
from jprune._threshold import find_last
from jprune._trees import is_hole, leaves_with_path, rebuild
from jprune._typing import Masks, Tree

__all__ = ["top_k_mask"]

SORTED = 2**11
"""Up to so many units on one device are sorted: to count takes a second more to
compile, and to sort takes a millisecond to run."""


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
    units = [jnp.asarray(x) for _, x in leaves if not is_hole(x)]
    wanted = _checked_k(k, sum(x.size for x in units))
    masks = iter(select(units, wanted) if units else [])
    return rebuild(
        scores, [x if is_hole(x) else next(masks) for _, x in leaves]
    )


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
    """Marks the best units of each pool, or of all in one ranking.

    Args:
      units: Scores; unless in one ranking axis 0 of each indexes pools.
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
    joint = isinstance(wanted, Count)
    return _select(units, wanted, kept, marked, joint=joint)


@partial(jax.jit, static_argnames="joint")
def count_kept(masks: list[jax.Array], *, joint: bool) -> jax.Array:
    """Marked units, int32: of each leaf if ``joint``, else of all its pools."""
    leaves = [in_rows(x[None] if joint else x) for x in masks]
    count = partial(at_once, count_true)
    return plan_of(leaves, joint=joint).read(count, leaves)[0]


@partial(jax.jit, static_argnames="joint")
def _select(
    units: list[jax.Array],
    wanted: Count | jax.Array,
    kept: list[jax.Array] | None,
    marked: jax.Array | None,
    *,
    joint: bool,
) -> list[jax.Array]:
    """See :func:`select`."""
    shapes = [x.shape for x in units]
    if joint:  # one pool; what were pools are units like any others
        units, kept = jax.tree.map(lambda x: x[None], (units, kept))
    most = jax.tree.map(lambda x: x.reshape(1, -1), _counts.count_of(wanted))
    here = not any(map(on_mesh, units))
    if here and sum(x.size for x in units) <= SORTED:
        ranks = places(units, kept, joint=joint)
        own = split(_counts.to_int32(most)[0], [len(x) for x in units])
        return [
            (x < lax.broadcast_in_dim(n, x.shape, (0,))).reshape(shape)
            for x, n, shape in zip(ranks, own, shapes, strict=True)
        ]
    leaves, kept = jax.tree.map(in_rows, (units, kept))
    plan = plan_of(leaves, joint=joint)
    if not any(plan.entries):
        return [jnp.zeros(shape, bool) for shape in shapes]
    # Zero of the scores' mesh and batch: a loop must not start from what is of
    # none, where `vmap` is over a divided axis of an Explicit mesh.
    zero = 0 * jnp.sum(jnp.isnan(leaves[0]), dtype=np.int32)
    available = zero + plan.sizes
    grow = jnp.zeros((1, 1), bool)
    if kept is not None:
        # Kept units come first: with enough of them the choice is among them,
        # else they all stay and the choice is among the others.
        if marked is None:
            count = partial(at_once, count_true)
            marked = plan_of(kept, joint=joint).read(count, kept)
        marked = marked.reshape(available.shape)
        total = plan.pooled(marked)
        grow = _counts.less(total, most)
        rest = _counts.subtract(most, total)
        most = _counts.where(grow, rest, most)
        available = jnp.where(grow, available - marked, marked)
        flags = plan.to_leaves(jnp.broadcast_to(grow, plan.sizes.shape))
        leaves = list(map(among, leaves, kept, [x[0] for x in flags]))
    lost = _counts.subtract(plan.pooled(available), most)
    asked = find_last(plan, leaves, lost, available, grow)
    masks = map(mark, leaves, plan.to_leaves(asked))
    return [x.reshape(shape) for x, shape in zip(masks, shapes, strict=True)]
