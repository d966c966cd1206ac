"""How many units stay: numbers of them, or what a budget is enough for."""

import math
from contextlib import nullcontext
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jprune._core import counts as _counts
from jprune._core.checks import is_traced
from jprune._core.trees import (
    concatenate_many,
    is_hole,
    leaves_with_path,
    path_name,
)
from jprune._core.typing import Tree
from jprune._core.varying import computed_now
from jprune.allocations import Pools
from jprune.choosing import budget as _budget
from jprune.choosing.budget import Budget
from jprune.choosing.families import Kept, Method
from jprune.selection.select import count_kept

Counts: TypeAlias = _counts.Count | jax.Array | Budget
"""Units that stay: in one ranking, or in the pools of each leaf in turn."""


def counts_of(
    method: Method, params: Tree, sparsity: Any, dropped: Any = 0.0
) -> Counts:
    """How many units stay, in one ranking or in each pool.

    Of each count the fraction ``dropped`` is taken off.
    """
    cost, pools = method.structure.cost, pools_of(method, params)
    if cost is None or not len(pools.sizes):
        return unit_counts(method, pools, sparsity, dropped)
    if method.allocation.joint:
        return Budget(sparsity)

    def left(sparsity: Any) -> jax.Array:
        return cost(unit_counts(method, pools, sparsity))  # type: ignore[arg-type]

    # Counts need no scores: unless the sparsity is traced they are constants.
    traced = is_traced(sparsity)
    with nullcontext() if traced else computed_now():
        sparsity = _budget.units_lost(left, sparsity, traced=traced)
    return unit_counts(method, pools, sparsity, dropped)


def check_reach(method: Method, params: Tree, sparsity: Any) -> None:
    """Refuses a number that pools can't meet; what is traced passes.

    Pools that must be alike say what they keep (``Structure.kept``), one ranking
    what every pool keeps in any case (``Allocation.least``).
    """
    kept, least = method.structure.kept, method.allocation.least
    if not isinstance(sparsity, float):
        return
    _check_most(method, params, sparsity)
    if kept is None and least is None:
        return
    pools = pools_of(method, params)

    def check(
        member: Any, left: Any, most: Any, size: Any, sparsity: float
    ) -> None:
        # Numbers are rounded to counts, and no further.
        if left > (1 - sparsity) * size + 0.5 + 1e-6:
            raise ValueError(
                f"`{method.call}(sparsity=...)`: `{member}` keeps at least {most} "
                f"of {size} units and meets no sparsity above "
                f"{1 - most / size:.6g}, got {sparsity:.6g}; a schedule of "
                "`prune` passes through what can be met."
            )

    if kept is not None:
        asked = [sparsity] * len(pools.sizes)
        if method.allocation.sparsities is not None:
            asked = method.allocation.sparsities(pools, sparsity)
        for size, share in {*zip(pools.sizes.tolist(), asked, strict=True)}:
            sizes = np.array([size])
            left, most = (kept(s, sizes)[0] for s in (share, 1.0))
            check(method.structure, left, most, size, share)
    elif least is not None and method.structure.cost is None:
        left = (pools.numbers * least(pools.sizes)).sum()
        size = (pools.numbers * pools.sizes).sum()
        check(method.allocation, left, left, size, sparsity)


def _check_most(method: Method, params: Tree, sparsity: float) -> None:
    """Refuses a number above that for which the allocation has counts."""
    most, cost = method.allocation.most, method.structure.cost
    if most is None:
        return
    if cost is not None:  # what is asked for is one of costs
        pools = pools_of(method, params)
        with computed_now():
            left = float(cost(unit_counts(method, pools, most)))  # type: ignore[arg-type]
        most = 1 - left
    if sparsity > most + _budget.ROUNDING:
        way = "make the allocation for a higher one"
        if cost is not None:
            way += ", or leave out `by=` if the sparsity is that of the fit"
        raise ValueError(
            f"`{method.call}(sparsity=...)`: `{method.allocation}` has counts up "
            f"to a sparsity of {most:.6g}, got {sparsity:.6g}; {way}."
        )


def pools_of(method: Method, params: Tree) -> Pools:
    """The pools of units of some parameters."""

    # Shapes alone: not how a mesh divides them.
    shapes_of = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(np.shape(x), np.float32), params
    )
    tree = jax.eval_shape(method.structure.to_units, shapes_of)
    units = jax.tree.leaves(tree)
    form: Any = jax.tree.structure(params)
    # Units that span leaves may be as many as those, in a list too.
    of_leaves = method.structure.names is None and form == (
        jax.tree.structure(tree)
    )
    few_units = method.structure.few_units
    # Of pools' axes.
    ends = [len(x.shape) - 1 if few_units else 1 for x in units]
    shapes = [
        (x.shape[:n], x.shape[n:]) for x, n in zip(units, ends, strict=True)
    ]
    return Pools(
        numbers=np.array([math.prod(x) for x, _ in shapes], np.int64),
        sizes=np.array([math.prod(x) for _, x in shapes], np.int64),
        shapes=[
            _layer(method, path, x)
            for path, x in leaves_with_path(params)
            if not is_hole(x)
        ]
        if of_leaves
        else None,
        kept=method.structure.kept,
        names=method.structure.names
        or tuple(
            (path_name(path),)
            for path, x in leaves_with_path(params)
            if not is_hole(x)
        ),
    )


def unit_counts(
    method: Method, pools: Pools, sparsity: Any, dropped: Any = 0.0
) -> _counts.Count | jax.Array:
    """The same where the sparsity is one of units."""
    counts = method.allocation.counts(_asked(method, pools), sparsity)
    if isinstance(dropped, jax.Array) or dropped:
        counts = jax.tree.map(
            partial(_counts.left_of, dropped),
            counts,
            is_leaf=lambda x: isinstance(x, _counts.Count),
        )
    if method.allocation.joint:
        return _in_one_ranking(method, pools, counts)
    numbers = pools.numbers
    if method.structure.few_units:
        numbers = np.ones_like(numbers)
    if isinstance(counts, _counts.Count):
        counts = _counts.to_int32(counts)
    if _is_array(counts) and counts.shape == numbers.shape:
        # One for each leaf; as a list they would be a slice for each.
        found = _int32(counts)[np.repeat(np.arange(len(numbers)), numbers)]
    else:
        each = [
            jnp.broadcast_to(_int32(count), number)
            for number, count in zip(numbers.tolist(), counts, strict=True)
        ]
        found = concatenate_many([jnp.zeros(0, np.int32), *each])
    if method.structure.round_to:
        sizes = np.repeat(pools.sizes, pools.numbers)
        found = multiples(found, sizes, method.structure.round_to)
    return found


def _asked(method: Method, pools: Pools) -> Pools:
    """The pools that a sparsity is about: those of the first model, if it is its."""
    first = method.structure.of
    if first is None:
        return pools
    sizes, numbers = first.sizes, pools.numbers
    if method.allocation.joint:
        sizes = np.append(sizes, first.others)
        numbers = np.append(numbers, np.ones_like(first.others))
    return pools._replace(sizes=sizes, numbers=numbers)


def _in_one_ranking(method: Method, pools: Pools, counts: Any) -> _counts.Count:
    """How many units stay of those that are there, and what each pool keeps."""
    found = _counts.count_of(counts)
    first = method.structure.of
    if first is not None:
        stay = _counts.count_of(first.stay)
        found = _counts.where(_counts.less(found, stay), stay, found)
        found = _counts.subtract(found, stay)
    each = reserved(method, pools.numbers, pools.sizes)
    if each is not None:
        least = _counts.count_of(each.sum())
        found = _counts.where(_counts.less(found, least), least, found)
    total = _counts.count_of((pools.numbers * pools.sizes).sum())
    return _counts.where(_counts.less(total, found), total, found)


def reserved(
    method: Method, numbers: np.ndarray, sizes: np.ndarray
) -> np.ndarray | None:
    """In one ranking, how many units every pool keeps in any case: int64."""
    both = method.allocation.least, method.structure.least
    rules = [rule for rule in both if rule is not None]
    if not method.allocation.joint or not rules:
        return None
    first = method.structure.of
    full = sizes if first is None else first.sizes
    each = np.max([rule(full) for rule in rules], 0)
    return np.repeat(np.minimum(each, sizes), numbers)


def _is_array(counts: Any) -> bool:
    return isinstance(counts, np.ndarray | jax.Array) and counts.dtype != object


def _int32(count: Any) -> jax.Array:
    if isinstance(count, _counts.Count):
        return _counts.to_int32(count)
    return jnp.asarray(count, np.int32)


def _layer(method: Method, path: Any, p: Any) -> tuple[int, ...]:
    """The shape of a parameter, or of one layer where it stacks several."""
    shape, structure = np.shape(p), method.structure
    if structure.layer is not None:
        return structure.layer(path, shape)
    stacked = np.ravel(np.array(structure.batch_axis, int))
    return tuple(np.delete(np.array(shape, int), stacked).tolist())


def is_due(method: Method, counts: Counts, kept: Kept) -> jax.Array:
    """Whether the number of kept units in any pool is not what it should be."""
    if isinstance(counts, Budget):
        return _is_off(method, counts, kept)
    now = _counts.count_of(kept.counts)
    if isinstance(counts, _counts.Count):
        return ~_counts.equal(_counts.total(now), counts)
    return jnp.any(kept.counts != counts)


def _is_off(method: Method, budget: Budget, kept: Kept) -> jax.Array:
    """The same for what is kept in one ranking by a budget."""
    structure, sizes = method.structure, sizes_of(kept.units)
    if not kept.units:
        return jnp.zeros((), bool)

    def rounded(counts: Any) -> jax.Array:
        return multiples(counts, sizes, structure.round_to)

    least = reserved(method, *shape_of(kept.units))
    if least is None:
        least = np.zeros_like(sizes)
    return _budget.is_off(
        structure.cost,  # type: ignore[arg-type]
        count_kept(kept.units, joint=False),
        sizes,
        rounded(least),
        rounded,
        budget.sparsity,
    )


def sizes_of(units: list[jax.Array]) -> np.ndarray:
    """How many units every pool has, kept or not."""
    return np.concatenate([np.full(len(x), x[0].size) for x in units])


def shape_of(units: list[jax.Array]) -> tuple[np.ndarray, np.ndarray]:
    """How many pools each array holds, and of how many units each."""
    numbers = np.array([len(x) for x in units], np.int64)
    return numbers, np.array([math.prod(x.shape[1:]) for x in units], np.int64)


def multiples(counts: jax.Array, sizes: np.ndarray, multiple: int) -> jax.Array:
    """The next positive multiples, or all the units of a pool; of 0 any number."""
    if not multiple:
        return counts
    counts = jnp.maximum(counts, 1)
    counts = -(-counts // multiple) * multiple
    return jnp.minimum(counts, sizes).astype(np.int32)
