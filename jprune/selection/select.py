"""The best units of each pool, or of all."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jprune._core import counts as _counts
from jprune._core.counts import Count
from jprune._core.layout import on_mesh
from jprune.selection.kernels import among, count_true, in_rows, mark
from jprune.selection.plan import at_once, plan_of, split_entries
from jprune.selection.ranking import places
from jprune.selection.threshold import find_last

SORTED = 2**11

"""Up to so many units on one device are sorted: to count takes a second more to
compile, and to sort takes a millisecond to run."""


def select(
    units: list[jax.Array],
    wanted: Count | jax.Array,
    kept: list[jax.Array] | None = None,
    marked: jax.Array | None = None,
    names: tuple[str, ...] | None = None,
) -> list[jax.Array]:
    """Marks the best units of each pool, or of all in one ranking.

    Args:
      units: Scores; unless in one ranking axis 0 of each indexes pools.
      wanted: How many to mark: a scalar :class:`Count` for one ranking of all
        units, or int32 numbers for the pools of each leaf in turn.
      kept: Bool arrays like ``units``: units that come before all others.
      marked: :func:`count_kept` of ``kept``, if it is known.
      names: The kinds of leaves, by :func:`jprune._core.trees.layer_names`: on a
        mesh what is of one kind is read together.

    Returns:
      Bool arrays like ``units``.
    """
    joint = isinstance(wanted, Count)
    for x in units:
        many = math.prod(x.shape if joint else x.shape[1:])
        if many >= 2**31:
            raise ValueError(
                f"A leaf holds {many} units that are ranked together, of shape "
                f"{x.shape}; selection counts below 2**31 of them in one leaf. "
                "A structure with `batch_axis=` ranks each layer by itself, under "
                "`uniform()` and `erdos_renyi()`."
            )
    masks: list[jax.Array] = _select(
        units,
        wanted,
        kept,
        marked,
        joint=joint,
        # Elsewhere other names would only compile the same program again.
        names=names if any(map(on_mesh, units)) else None,
    )
    return masks


@partial(jax.jit, static_argnames=("joint", "names"))
def count_kept(
    masks: list[jax.Array],
    *,
    joint: bool,
    names: tuple[str, ...] | None = None,
) -> jax.Array:
    """Marked units, int32: of each leaf if ``joint``, else of all its pools."""
    leaves = [in_rows(_one_pool(x) if joint else x) for x in masks]
    count = partial(at_once, count_true)
    plan = plan_of(leaves, joint=joint, names=names)
    return plan.read(count, leaves)[0]


@partial(jax.jit, static_argnames=("joint", "names"))
def _select(
    units: list[jax.Array],
    wanted: Count | jax.Array,
    kept: list[jax.Array] | None,
    marked: jax.Array | None,
    *,
    joint: bool,
    names: tuple[str, ...] | None,
) -> list[jax.Array]:
    """See :func:`select`."""
    shapes = [x.shape for x in units]
    if joint:  # one pool; what were pools are units like any others
        units, kept = jax.tree.map(_one_pool, (units, kept))
    most = jax.tree.map(lambda x: x.reshape(1, -1), _counts.count_of(wanted))
    here = not any(map(on_mesh, units))
    if here and sum(x.size for x in units) <= SORTED:
        ranks = places(units, kept, joint=joint)
        own = split_entries(_counts.to_int32(most)[0], [len(x) for x in units])
        return [
            (x < lax.broadcast_in_dim(n, x.shape, (0,))).reshape(shape)
            for x, n, shape in zip(ranks, own, shapes, strict=True)
        ]
    leaves, kept = jax.tree.map(in_rows, (units, kept))
    plan = plan_of(leaves, joint=joint, names=names)
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
            marked = plan_of(kept, joint=joint, names=names).read(count, kept)
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


def _one_pool(x: jax.Array) -> jax.Array:
    """``[1, ...]``; what is of one pool stays as it is, since 16-bit floats are
    copied on a CPU even where only an axis is added.
    """
    return x if x.ndim > 1 and len(x) == 1 else x[None]
