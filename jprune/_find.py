"""From parameters to masks: criterion, structure, allocation, selection."""

from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jprune import _counts
from jprune._checks import (
    check_member,
    check_sparsity,
    check_where,
    choose,
    prunable,
)
from jprune._trees import (
    align,
    is_floating,
    leaves_with_path,
    path_name,
    rebuild,
)
from jprune._typing import Masks, Tree, Where
from jprune.allocations import Allocation, uniform
from jprune.criteria import Criterion, magnitude
from jprune.masks import full_masks
from jprune.selection import count_kept, select
from jprune.structures import Structure, unstructured

Counts: TypeAlias = _counts.Count | list[_counts.Count]
"""Units that stay: in one ranking, or ``[pools]`` for each leaf."""


class Method(NamedTuple):
    """What decides which weights stay, and how callers are named in errors."""

    call: str
    criterion: Criterion
    structure: Structure
    allocation: Allocation

    def check(self) -> None:
        """Refuses uncalled factories."""
        check_member(self.call, "criterion", self.criterion, Criterion)
        check_member(self.call, "structure", self.structure, Structure)
        check_member(self.call, "allocation", self.allocation, Allocation)

    def choose(self, where: Where, params: Tree) -> Tree:
        """``params`` with holes in place of what is not pruned."""
        if self.structure.where is not None:
            where = self.structure.where
        return choose(self.call, where, params, prunable)


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
        pruned stays pruned while the sparsity does not fall.
      grads: Gradients like ``params``, for criteria that need them.
      key: A random key, for criteria that need one.

    Returns:
      A tree like ``params``: bool arrays of the parameters' shapes (and
      sharding) for selected leaves, ``optax.MaskedNode()`` for the others.

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
    if callable(sparsity):
        raise ValueError(
            "`find_masks(sparsity=...)` must be a number, got the schedule "
            f"{sparsity!r}; schedules are for `prune`."
        )
    sparsity = check_sparsity("find_masks", sparsity)
    check_where("find_masks", where)
    chosen = method.choose(where, params)
    if masks is not None:
        masks = full_masks("`find_masks(masks=...)`", chosen, masks)
        masks = _everywhere(chosen, masks)
    if grads is not None:
        grads = like(chosen, grads, "`find_masks(grads=...)`")
    state = criterion.update(grads, criterion.init(chosen), chosen)
    counts = counts_of(method, chosen, sparsity)
    kept = None if masks is None else kept_units(method, masks)
    return find(method, chosen, counts, state, grads, key, kept)


def _everywhere(params: Tree, masks: Masks) -> Masks:
    """Masks for every parameter: all is kept where there was none."""

    def leaf(p: Any, mask: Any) -> Any:
        if isinstance(mask, optax.MaskedNode):
            return jnp.ones_like(p, dtype=bool)
        return mask

    return jax.tree.map(leaf, params, masks)


def like(params: Tree, tree: Tree, call: str) -> Tree:
    """``tree`` without what ``params`` has no parameter for."""
    aligned = align(tree, params, call, prefix=False)
    leaves = [
        p if leaf is None else leaf
        for (_, p), leaf in zip(leaves_with_path(params), aligned, strict=True)
    ]
    return rebuild(params, leaves)


def find(
    method: Method,
    params: Tree,
    counts: Counts,
    state: Any,
    grads: Tree | None,
    key: Any,
    kept: list[jax.Array] | None,
) -> Masks:
    """The masks of ``params``, of which every leaf is pruned."""
    units, structure = _units(method, params, state, grads, key)
    if not units:
        return params
    chosen = select(units, counts, kept)
    multiple = method.structure.round_to
    if multiple and method.allocation.joint:
        rounded = _rounded_up(units, chosen, multiple)
        if kept is not None:  # what was pruned comes last
            units = [
                jnp.where(k, x, -jnp.inf)
                for x, k in zip(units, kept, strict=True)
            ]
        chosen = select(units, rounded, chosen)
    masks = jax.tree.unflatten(structure, chosen)
    return method.structure.to_masks(masks, params)


def _rounded_up(
    units: list[jax.Array], chosen: list[jax.Array], multiple: int
) -> list[_counts.Count]:
    """Counts of each pool, as :class:`Structure` wants them."""
    return [
        _multiple(x, count_kept([c], joint=False), multiple)
        for x, c in zip(units, chosen, strict=True)
    ]


def _multiple(x: Any, count: _counts.Count, multiple: int) -> _counts.Count:
    """The next positive multiple, or all the units of a pool."""
    wanted = jnp.maximum(_counts.to_int32(count), 1)
    wanted = -(-wanted // multiple) * multiple
    size = np.prod(x.shape[1:], dtype=np.int32)
    return _counts.count_of(jnp.minimum(wanted, size))


def is_due(counts: Counts, kept: list[jax.Array]) -> jax.Array:
    """Whether the number of kept units in any pool is not what it should be."""
    if not kept:
        return jnp.array(False)
    if isinstance(counts, _counts.Count):
        return ~_counts.equal(count_kept(kept, joint=True), counts)
    wanted = jax.tree.map(lambda *c: jnp.concatenate(c), *counts)
    return ~jnp.all(_counts.equal(count_kept(kept, joint=False), wanted))


def check_method(method: Method, params: Tree) -> None:
    """Refuses, without computing, what can't score or shape ``params``."""

    def units(params: Tree) -> Any:
        state = method.criterion.init(params)
        return _units(method, params, state, params, jax.random.key(0))[0]

    if jax.tree.leaves(params):
        jax.eval_shape(units, params)


def _units(
    method: Method, params: Tree, state: Any, grads: Any, key: Any
) -> tuple[list[jax.Array], Any]:
    """Scores of units, ready to be ranked, and the structure of their tree."""
    scores = method.criterion.score(params, state, grads, key)
    _check_scores(method.call, params, scores)
    units = method.structure.to_units(scores)
    return jax.tree.flatten(method.allocation.normalize(units))


def _check_scores(call: str, params: Tree, scores: Tree) -> None:
    """Refuses scores that are not floats in the shapes of the parameters."""
    call = f"`{call}(criterion=...)`"
    aligned = align(scores, params, f"{call}, the scores", prefix=False)
    for (path, p), score in zip(leaves_with_path(params), aligned, strict=True):
        if score is None:
            continue
        if not is_floating(score) or np.shape(score) != np.shape(p):
            found = getattr(score, "dtype", type(score).__name__)
            raise ValueError(
                f"{call}: the scores of {path_name(path)!r} must be floating of "
                f"shape {np.shape(p)}, got {found} of shape {np.shape(score)}."
            )


def counts_of(method: Method, params: Tree, sparsity: Any) -> Counts:
    """How many units stay: one count, or ``[pools]`` counts for each leaf."""

    def units_of(params: Tree) -> Tree:
        return method.structure.to_units(params)

    units = jax.eval_shape(units_of, params)
    counts = method.allocation.counts(units, sparsity)
    if method.allocation.joint:
        return _counts.count_of(counts)

    def per_pool(x: Any, count: Any) -> _counts.Count:
        counted = _counts.count_of(count)
        if method.structure.round_to:
            counted = _multiple(x, counted, method.structure.round_to)
        return jax.tree.map(lambda c: jnp.broadcast_to(c, x.shape[:1]), counted)

    return jax.tree.leaves(
        jax.tree.map(per_pool, units, counts),
        is_leaf=lambda x: isinstance(x, _counts.Count),
    )


def kept_units(method: Method, masks: Masks) -> list[jax.Array]:
    """Units of which any weight is kept."""
    scores = jax.tree.map(lambda m: m.astype(jnp.float32), masks)
    units = jax.tree.leaves(method.structure.to_units(scores))
    return [x > 0 for x in units]
