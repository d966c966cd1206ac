"""From parameters to masks: criterion, structure, allocation, selection."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jprune._core import counts as _counts
from jprune._core.checks import (
    check_alike,
    check_fixed,
    check_order,
    is_fraction,
    is_traced,
)
from jprune._core.layout import on_mesh
from jprune._core.paths import matched_to
from jprune._core.seeds import key_maker
from jprune._core.trees import is_hole, layer_names
from jprune._core.typing import Masks, Tree, Where
from jprune._core.where import check_where
from jprune._core.xla import not_hoisted
from jprune.allocations import Allocation
from jprune.choosing import budget as _budget
from jprune.choosing.budget import Budget
from jprune.choosing.families import (
    Kept,
    Method,
    kept_units,
    method_of,
    unit_scores,
)
from jprune.choosing.targets import (
    Counts,
    check_reach,
    counts_of,
    multiples,
    pools_of,
    reserved,
    shape_of,
    sizes_of,
    unit_counts,
)
from jprune.criteria import Criterion, magnitude
from jprune.masks import full_masks
from jprune.selection.ranking import places, select_few
from jprune.selection.select import count_kept, select
from jprune.structures import Structure, unstructured


def find_masks(
    params: Tree,
    sparsity: float | jax.typing.ArrayLike,
    *,
    criterion: Criterion = magnitude(),
    structure: Structure = unstructured(),
    allocation: Allocation | None = None,
    where: Where = None,
    masks: Masks | None = None,
    grads: Tree | None = None,
    key: jax.Array | int | None = None,
) -> Masks:
    """Chooses which weights to keep, and returns them as masks.

    Args:
      params: The parameters, any pytree.
      sparsity: The fraction of units removed, in [0, 1]. Of ``n`` units
        ``round(float(sparsity) * n)`` are removed (half to even). A traced value
        is used exactly, as float32 (x64: float64). If it is NaN or outside
        [0, 1], nothing is pruned, and ``masks`` stay as they are.
      criterion: How weights are scored; see :mod:`jprune.criteria`.
      structure: Which weights form a unit; see :mod:`jprune.structures`.
      allocation: How much is removed from each leaf; see
        :mod:`jprune.allocations`. None: ``erdos_renyi()`` if every selected leaf
        has two axes (besides the structure's ``batch_axis``), is the kernel of a
        convolution (four or five axes), or the structure knows its inputs and
        outputs. Otherwise, and for ``n_m`` and ``units``, ``uniform()``.
      where: The leaves that are pruned: a bool tree or prefix of ``params``, a
        callable ``params -> bool tree``, or a regular expression searched in
        the leaf's path (``"Dense_0/kernel"``). An expression selects among
        floating leaves of two or more axes that are not biases; one that matches
        a whole path (``".*bias"``) selects any floating leaf. Default: floating
        leaves with two or more axes, except those called ``bias``, ``scale``,
        ``mean``, ``var`` (or ``b`` beside a ``w``), and those with one of the
        words norm, layernorm, batchnorm, rmsnorm, groupnorm, emb, embed, embedding,
        pos, position, positional in their own name or their parent's
        (``pos_embed``, ``LayerNorm_0``).
      masks: Masks of an earlier choice. Units that they keep are preferred to
        units that they prune, so pruned units stay pruned while the sparsity does
        not fall. Masks of leaves that ``where`` does not select are returned as
        they are.
      grads: Gradients like ``params``, for criteria that need them. A criterion
        that accumulates treats them as its only step.
      key: A seed or a random key of any form, for criteria that need one.

    Returns:
      A tree like ``params``: bool arrays of the parameters' shapes (and
      sharding) for selected leaves and for leaves with a mask in ``masks``, and
      ``optax.MaskedNode()`` for the others.

    Raises:
      ValueError: A concrete ``sparsity`` is outside [0, 1], or the structure or
        allocation can't meet it (the message says what they can meet); a factory
        was not called; ``where`` selects nothing, or a leaf that is not
        floating; masks or gradients do not fit.

    References:
      :func:`jprune.selection.top_k_mask` says how ties are broken.

    >>> import jax.numpy as jnp, jprune
    >>> jprune.find_masks({"kernel": jnp.array([[1., -4.], [3., -2.]]),
    ...                    "bias": jnp.ones(2)}, .5)
    {'bias': MaskedNode(), 'kernel': Array([[False,  True],
           [ True, False]], dtype=bool)}

    Of two layers the smaller is denser, by Erdos-Renyi, unless you say otherwise:

    >>> params = {"small": jnp.ones((4, 4)), "large": jnp.ones((16, 16))}
    >>> masks = jprune.find_masks(params, .75)
    >>> int(masks["small"].sum()), int(masks["large"].sum())
    (14, 54)
    >>> masks = jprune.find_masks(
    ...     params, .75, allocation=jprune.allocations.uniform())
    >>> int(masks["small"].sum()), int(masks["large"].sum())
    (4, 64)
    """
    method = method_of("find_masks", criterion, structure, allocation)
    check_order("find_masks", params, sparsity)
    sparsity = check_fixed("find_masks", sparsity)
    check_where("find_masks", where)
    if key is not None:
        key = key_maker("find_masks", key)()
    chosen = method.choose(where, params)
    if grads is not None:
        grads = matched_to(chosen, grads, "`find_masks(grads=...)`", "gradient")
    check_reach(method, chosen, sparsity)
    state = criterion.update(grads, criterion.init(chosen), chosen)
    counts = counts_of(method, chosen, sparsity)
    if masks is None:
        return find(method, chosen, counts, state, grads, key, None)
    masks = full_masks("`find_masks(masks=...)`", params, masks)
    kept = kept_units(method, _everywhere(chosen, masks))
    found = find(method, chosen, counts, state, grads, key, kept)

    def leaf(new: Any, old: Any) -> Any:
        if is_hole(new):
            return old
        if isinstance(sparsity, jax.Array) and not is_hole(old):
            return jnp.where(is_fraction(sparsity), new, old)
        return new

    return jax.tree.map(leaf, found, masks, is_leaf=is_hole)


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
    units, structure = unit_scores(method, params, state, grads, key)
    if not units:
        return params
    stay, marked = kept or (None, None)
    names = layer_names(structure)
    least = reserved(method, *shape_of(units))
    if least is not None:
        units = _reserve(least, units, stay, names)
    if isinstance(counts, Budget):
        counts = _affordable(method, params, units, counts, stay)
    if method.structure.few_units and not isinstance(counts, _counts.Count):
        marks = select_few(units, counts, stay)
    else:
        marks = select(units, counts, stay, marked, names=names)
    if method.structure.round_to and method.allocation.joint:
        marks = _filled_up(units, marks, stay, method.structure.round_to)
    chosen = jax.tree.unflatten(structure, marks)
    masks = method.structure.to_masks(chosen, params)
    if method.structure.moves:  # each mask is made of its weights' own scores
        return masks
    return jax.tree.map(_divided_as, params, masks, is_leaf=is_hole)


def _divided_as(p: Any, mask: Any) -> Any:
    """The mask, divided among devices as the weights are.

    XLA would leave one that is made of few scores whole on every device, where
    axes are Auto. So each entry is made of its weight too, whatever that is.
    """
    if is_hole(p) or not on_mesh(p):
        return mask
    if jax.typeof(p).sharding.mesh.are_all_axes_explicit:
        return mask  # its type says how it is divided
    dtype = getattr(jnp, f"uint{jnp.finfo(p.dtype).bits}")
    none = not_hoisted(np.zeros((), dtype))  # what is known would be dropped
    return mask & (lax.bitcast_convert_type(p, dtype) >= none)


def _affordable(
    method: Method,
    params: Tree,
    units: list[jax.Array],
    budget: Budget,
    kept: list[jax.Array] | None,
) -> _counts.Count:
    """How many of the best units of all a budget is enough for."""
    structure, pools = method.structure, pools_of(method, params)
    sizes, ranks = sizes_of(units), places(units, kept, joint=True)

    def at(sparsity: Any) -> _counts.Count:
        return unit_counts(method, pools, sparsity)  # type: ignore[return-value]

    def left(sparsity: Any) -> jax.Array:
        most = _counts.to_int32(at(sparsity))
        counts = count_kept([x < most for x in ranks], joint=False)
        return structure.cost(multiples(counts, sizes, structure.round_to))  # type: ignore[misc]

    traced = any(map(is_traced, jax.tree.leaves((units, kept))))
    return at(_budget.units_lost(left, budget.sparsity, traced=traced))


def _filled_up(
    units: list[jax.Array],
    marks: list[jax.Array],
    kept: list[jax.Array] | None,
    multiple: int,
) -> list[jax.Array]:
    """What one ranking marked, and more until all pools hold multiples."""
    counts = count_kept(marks, joint=False)
    counts = multiples(counts, sizes_of(units), multiple)
    if kept is not None:  # what was pruned comes last
        units = [
            jnp.where(k, x, -jnp.inf) for x, k in zip(units, kept, strict=True)
        ]
    return select(units, counts, marks)


def _reserve(
    least: np.ndarray,
    units: list[jax.Array],
    kept: list[jax.Array] | None,
    names: tuple[str, ...],
) -> list[jax.Array]:
    """Makes the scores of so many best units of each pool the highest of all."""
    best = select(units, jnp.asarray(least, np.int32), kept, names=names)
    # Infinity comes first (not NaN, which `jax_debug_nans` refuses), so that
    # what is as high and not reserved must step back.
    return [
        jnp.where(
            mask,
            jnp.inf,
            jnp.where(x <= (most := jnp.finfo(x.dtype).max), x, most),
        )
        for x, mask in zip(units, best, strict=True)
    ]


def check_method(method: Method, params: Tree) -> None:
    """Refuses, without computing, what can't score or shape ``params``."""

    def units(params: Tree) -> Any:
        state = method.criterion.init(params)
        after = method.criterion.update(params, state, params)
        call = f"`{method.call}({method.role}=...)`"
        check_alike(
            f"{call}: `update` must return a state like `init`", state, after
        )
        counts_of(method, params, 0.5)  # the allocation may refuse the pools
        return unit_scores(method, params, after, params, jax.random.key(0))[0]

    if jax.tree.leaves(params):
        jax.eval_shape(units, params)
