"""From parameters to masks: criterion, structure, allocation, selection."""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jprune import _budget, _counts
from jprune._budget import Budget
from jprune._checks import (
    check_fixed,
    check_member,
    check_where,
    choose,
    is_traced,
    prunable,
)
from jprune._ranking import count_alike, select_few
from jprune._trees import is_hole, like, path_name, wide
from jprune._typing import Masks, Tree, Where
from jprune.allocations import Allocation, Pools, uniform
from jprune.criteria import Criterion, magnitude
from jprune.masks import full_masks
from jprune.selection import count_kept, select
from jprune.structures import Structure, unstructured

Counts: TypeAlias = _counts.Count | jax.Array | Budget
"""Units that stay: in one ranking, or in the pools of each leaf in turn."""


class Kept(NamedTuple):
    """The units that masks in force keep."""

    units: list[jax.Array]  # bool, [pools, ...] for each leaf
    counts: jax.Array  # int32, see :func:`jprune.selection.count_kept`


class Method(NamedTuple):
    """What decides which weights stay, and how callers are named in errors."""

    call: str
    criterion: Criterion
    structure: Structure
    allocation: Allocation
    role: str = "criterion"  # the criterion's name in the call

    def check(self) -> None:
        """Refuses uncalled factories and what does not go together."""
        check_member(self.call, self.role, self.criterion, Criterion)
        check_member(self.call, "structure", self.structure, Structure)
        check_member(self.call, "allocation", self.allocation, Allocation)
        alike = self.structure.kept
        if self.allocation.joint and alike is not None:
            raise ValueError(
                f"`{self.call}(structure=..., allocation=...)`: "
                f"`{_factory(alike)}` keeps the same number in all pools, which "
                f"one ranking, `{_factory(self.allocation.counts)}`, can't; "
                "`uniform` and `erdos_renyi` can."
            )

    def choose(self, where: Where, params: Tree) -> Tree:
        """``params`` with holes in place of what is not pruned."""
        if self.structure.where is not None:
            where = self.structure.where
        return choose(self.call, where, params, prunable)


def _factory(member: Callable[..., Any]) -> str:
    """The name of the function that made a member."""
    return member.__qualname__.partition(".")[0]


def find_masks(
    params: Tree,
    sparsity: float | jax.typing.ArrayLike,
    *,
    criterion: Criterion = magnitude(),
    structure: Structure = unstructured(),
    allocation: Allocation = uniform(),
    where: Where = None,
    masks: Masks | None = None,
    grads: Tree | None = None,
    key: jax.Array | None = None,
) -> Masks:
    """Decides which weights stay, once.

    Args:
      params: The parameters, any pytree.
      sparsity: The fraction of units removed, in [0, 1]. Of ``n`` units
        ``round(float(sparsity) * n)`` are lost (half to even); if it is traced,
        its float32 (x64: float64) value takes part exactly.
      criterion: What matters; see :mod:`jprune.criteria`.
      structure: In what shape; see :mod:`jprune.structures`.
      allocation: How much where; see :mod:`jprune.allocations`.
      where: The leaves that are pruned: a bool tree or prefix of ``params``, a
        callable ``params -> bool tree``, or a regular expression searched in
        the leaf's path (``"Dense_0/kernel"``). Default: floating leaves with
        two or more axes, unless they are called ``bias``, ``scale``, ``mean``,
        ``var`` or something with ``embed``.
      masks: Masks in force: what they keep comes before what they prune, so
        pruned stays pruned while the sparsity does not fall. Masks of leaves
        that ``where`` does not select are returned as they are.
      grads: Gradients like ``params``, for criteria that need them. A criterion
        that accumulates takes them for its only step.
      key: A random key, for criteria that need one.

    Returns:
      A tree like ``params``: bool arrays of the parameters' shapes (and
      sharding) for selected leaves and those that ``masks`` masks,
      ``optax.MaskedNode()`` for the others.

    Raises:
      ValueError: A concrete ``sparsity`` outside [0, 1], an uncalled factory, a
        ``where`` that selects nothing or what is not floating, masks or
        gradients that do not fit.

    References:
      The order of equals is in :func:`jprune.selection.top_k_mask`.

    >>> import jax.numpy as jnp, jprune
    >>> jprune.find_masks({"kernel": jnp.array([[1., -4.], [3., -2.]]),
    ...                    "bias": jnp.ones(2)}, .5)
    {'bias': MaskedNode(), 'kernel': Array([[False,  True],
           [ True, False]], dtype=bool)}
    """
    method = Method("find_masks", criterion, structure, allocation)
    method.check()
    sparsity = check_fixed("find_masks", sparsity)
    check_where("find_masks", where)
    chosen = method.choose(where, params)
    if grads is not None:
        grads = like(chosen, grads, "`find_masks(grads=...)`", "gradient")
    state = criterion.update(grads, criterion.init(chosen), chosen)
    counts = counts_of(method, chosen, sparsity)
    if masks is None:
        return find(method, chosen, counts, state, grads, key, None)
    masks = full_masks("`find_masks(masks=...)`", params, masks)
    kept = kept_units(method, _everywhere(chosen, masks))
    found = find(method, chosen, counts, state, grads, key, kept)
    return jax.tree.map(
        lambda new, old: old if is_hole(new) else new,
        found,
        masks,
        is_leaf=is_hole,
    )


def _everywhere(params: Tree, masks: Masks) -> Masks:
    """Masks for every parameter: all is kept where there was none."""

    def leaf(p: Any, mask: Any) -> Any:
        if is_hole(p):
            return p
        return jnp.ones_like(p, dtype=bool) if is_hole(mask) else mask

    return jax.tree.map(leaf, params, masks, is_leaf=is_hole)


def find(
    method: Method,
    params: Tree,
    counts: Counts,
    state: Any,
    grads: Tree | None,
    key: Any,
    kept: Kept | None,
) -> Masks:
    """The masks of ``params``, of which every leaf is pruned."""
    units, structure = _units(method, params, state, grads, key)
    if not units:
        return params
    before = kept or (None, None)
    if method.allocation.least is not None:
        units = _reserve(method.allocation.least, units, before[0])
    if isinstance(counts, Budget):
        counts = _affordable(method, params, units, counts, *before)
    if method.structure.few and not isinstance(counts, _counts.Count):
        marks = select_few(units, counts, before[0])
    else:
        marks = select(units, counts, *before)
    if method.structure.round_to and method.allocation.joint:
        marks = _filled_up(units, marks, before[0], method.structure.round_to)
    chosen = jax.tree.unflatten(structure, marks)
    return method.structure.to_masks(chosen, params)


def _affordable(
    method: Method,
    params: Tree,
    units: list[jax.Array],
    budget: Budget,
    kept: list[jax.Array] | None,
    marked: jax.Array | None,
) -> _counts.Count:
    """How many of the best units of all a budget is enough for."""
    structure, pools = method.structure, pools_of(method, params)
    sizes = _sizes(units)

    def at(sparsity: Any) -> _counts.Count:
        return _counts.count_of(method.allocation.counts(pools, sparsity))

    def left(sparsity: Any) -> jax.Array:
        marks = select(units, at(sparsity), kept, marked)
        counts = count_kept(marks, joint=False)
        return structure.cost(_multiple(counts, sizes, structure.round_to))  # type: ignore[misc]

    traced = any(map(is_traced, jax.tree.leaves((units, kept))))
    return at(_budget.units_lost(left, budget.sparsity, traced=traced))


def _sizes(units: list[jax.Array]) -> np.ndarray:
    """How many units every pool has, kept or not."""
    return np.concatenate([np.full(len(x), x[0].size) for x in units])


def _filled_up(
    units: list[jax.Array],
    marks: list[jax.Array],
    kept: list[jax.Array] | None,
    multiple: int,
) -> list[jax.Array]:
    """What one ranking marked, and more until all pools hold multiples."""
    counts = count_kept(marks, joint=False)
    counts = _multiple(counts, _sizes(units), multiple)
    if kept is not None:  # what was pruned comes last
        units = [
            jnp.where(k, x, -jnp.inf) for x, k in zip(units, kept, strict=True)
        ]
    return select(units, counts, marks)


def _multiple(counts: Any, sizes: np.ndarray, multiple: int) -> jax.Array:
    """The next positive multiples, or all the units of a pool."""
    counts = jnp.maximum(counts, 1)
    counts = -(-counts // multiple) * multiple
    return jnp.minimum(counts, sizes).astype(np.int32)


def _reserve(
    least: Callable[[np.ndarray], np.ndarray],
    units: list[jax.Array],
    kept: list[jax.Array] | None,
) -> list[jax.Array]:
    """Makes the scores of so many best units of each pool the highest of all."""
    sizes = np.array([math.prod(x.shape[1:]) for x in units], np.int64)
    counts = np.repeat(least(sizes), [len(x) for x in units])
    best = select(units, jnp.asarray(counts, np.int32), kept)
    # NaN comes first, so that a NaN which is not reserved must step back.
    return [
        jnp.where(mask, jnp.nan, jnp.where(jnp.isnan(x), jnp.inf, x))
        for x, mask in zip(units, best, strict=True)
    ]


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
    structure, sizes = method.structure, _sizes(kept.units)
    if not kept.units:
        return jnp.zeros((), bool)

    def rounded(counts: Any) -> jax.Array:
        return _multiple(counts, sizes, structure.round_to)

    least = np.zeros_like(sizes)
    if method.allocation.least is not None:
        least = method.allocation.least(sizes)
    return _budget.is_off(
        structure.cost,  # type: ignore[arg-type]
        count_kept(kept.units, joint=False),
        sizes,
        rounded(least),
        rounded,
        budget.sparsity,
    )


def check_method(method: Method, params: Tree) -> None:
    """Refuses, without computing, what can't score or shape ``params``."""

    def units(params: Tree) -> Any:
        state = method.criterion.init(params)
        after = method.criterion.update(params, state, params)
        _check_state(f"`{method.call}({method.role}=...)`", state, after)
        counts_of(method, params, 0.5)  # the allocation may refuse the pools
        return _units(method, params, after, params, jax.random.key(0))[0]

    if jax.tree.leaves(params):
        jax.eval_shape(units, params)


def _check_state(call: str, before: Any, after: Any) -> None:
    """Refuses a criterion whose state changes its form from step to step."""
    call = f"{call}: `update` must return a state like `init`"
    old, new = (str(jax.tree.structure(state)) for state in (before, after))
    if old != new:
        raise ValueError(f"{call}, {old}, got {new}.")

    def check(path: Any, x: Any, y: Any) -> None:
        old, new = (f"{leaf.dtype} of shape {leaf.shape}" for leaf in (x, y))
        if old != new:
            raise ValueError(
                f"{call}: {path_name(path)!r} is {old}, got {new}."
            )

    before, after = (
        jax.tree.map(jnp.asarray, state) for state in (before, after)
    )
    jax.tree_util.tree_map_with_path(check, before, after)


def _units(
    method: Method, params: Tree, state: Any, grads: Any, key: Any
) -> tuple[list[jax.Array], Any]:
    """Scores of units, ready to be ranked, and the structure of their tree."""
    scores = method.criterion.score(params, state, grads, key)
    call = f"`{method.call}({method.role}=...)`"
    # Selection has no gradient: nothing of it is to be differentiated.
    scores = lax.stop_gradient(like(params, scores, call, "scores"))
    # Sums of 16-bit scores overflow; those of built-in criteria are wide.
    scores = jax.tree.map(wide, scores)
    units = method.criterion.pooled(_pooled(method, scores))
    return jax.tree.flatten(method.allocation.normalize(units))


def _pooled(method: Method, scores: Tree) -> Tree:
    """Scores of units; where signs count, no norm may lose them."""

    def part(sign: int) -> Tree:
        return method.structure.to_units(
            jax.tree.map(lambda s: jnp.maximum(sign * s, 0), scores)
        )

    if method.criterion.signed and method.structure.pooling in ("l2", "l1"):
        return jax.tree.map(jnp.subtract, part(1), part(-1))
    return method.structure.to_units(scores)


def counts_of(
    method: Method, params: Tree, sparsity: Any, dropped: Any = 0.0
) -> Counts:
    """How many units stay, in one ranking or in each pool.

    Of each count the fraction ``dropped`` is taken off.
    """
    cost, pools = method.structure.cost, pools_of(method, params)
    if cost is None or not len(pools.sizes):
        return _unit_counts(method, pools, sparsity, dropped)
    if method.allocation.joint:
        return Budget(sparsity)

    def left(sparsity: Any) -> jax.Array:
        return cost(_unit_counts(method, pools, sparsity))  # type: ignore[arg-type]

    # Counts need no scores: unless the sparsity is traced they are constants.
    traced = is_traced(sparsity)
    with nullcontext() if traced else jax.ensure_compile_time_eval():
        sparsity = _budget.units_lost(left, sparsity, traced=traced)
    return _unit_counts(method, pools, sparsity, dropped)


def pools_of(method: Method, params: Tree) -> Pools:
    """The pools of units of some parameters."""

    def units_of(params: Tree) -> Tree:
        return method.structure.to_units(jax.tree.map(wide, params))

    tree = jax.eval_shape(units_of, params)
    units = jax.tree.leaves(tree)
    form: Any = jax.tree.structure(params)
    of_leaves = form == jax.tree.structure(tree)
    few = method.structure.few
    ends = [len(x.shape) - 1 if few else 1 for x in units]  # of pools' axes
    shapes = [
        (x.shape[:n], x.shape[n:]) for x, n in zip(units, ends, strict=True)
    ]
    return Pools(
        numbers=np.array([math.prod(x) for x, _ in shapes], np.int64),
        sizes=np.array([math.prod(x) for _, x in shapes], np.int64),
        shapes=[_layer(method, x) for x in jax.tree.leaves(params)]
        if of_leaves
        else None,
        kept=method.structure.kept,
    )


def _unit_counts(
    method: Method, pools: Pools, sparsity: Any, dropped: Any = 0.0
) -> _counts.Count | jax.Array:
    """The same where the sparsity is one of units."""
    counts = method.allocation.counts(pools, sparsity)
    if isinstance(dropped, jax.Array) or dropped:
        counts = jax.tree.map(
            partial(_counts.left_of, dropped),
            counts,
            is_leaf=lambda x: isinstance(x, _counts.Count),
        )
    if method.allocation.joint:
        return _counts.count_of(counts)
    few = method.structure.few
    each = [
        jnp.broadcast_to(_int32(count), () if few else (number,))
        for number, count in zip(pools.numbers.tolist(), counts, strict=True)
    ]
    found = jnp.concatenate(
        [jnp.zeros(0, np.int32), *map(jnp.atleast_1d, each)]
    )
    if method.structure.round_to:
        sizes = np.repeat(pools.sizes, pools.numbers)
        found = _multiple(found, sizes, method.structure.round_to)
    return found


def _int32(count: Any) -> jax.Array:
    if isinstance(count, _counts.Count):
        return _counts.to_int32(count)
    return jnp.asarray(count, np.int32)


def _layer(method: Method, p: Any) -> tuple[int, ...]:
    """The shape of a parameter, or of one layer where it stacks several."""
    batch = method.structure.batch_axis
    axes = batch if isinstance(batch, Sequence) else [batch]
    stacked = [axis % np.ndim(p) for axis in axes]
    return tuple(n for i, n in enumerate(np.shape(p)) if i not in stacked)


def kept_units(method: Method, masks: Masks) -> Kept:
    """Units of which any weight is kept, and how many."""
    scores = jax.tree.map(lambda m: m.astype(jnp.float32), masks)
    units = [x > 0 for x in jax.tree.leaves(method.structure.to_units(scores))]
    joint = method.allocation.joint
    none = jnp.zeros(0, np.int32)
    if method.structure.few and units:
        return Kept(units, jnp.stack(list(map(count_alike, units))))
    return Kept(units, count_kept(units, joint=joint) if units else none)
