"""What a rewiring does: which connections, and the step beside it."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jprune._core.describe import describe
from jprune._core.trees import is_hole, kept_only
from jprune._core.typing import Masks, Tree
from jprune.allocations import Allocation
from jprune.choosing.choose import find
from jprune.choosing.families import Method, kept_units, method_of
from jprune.choosing.targets import counts_of
from jprune.choosing.wanted import Wanted
from jprune.criteria import Criterion, random
from jprune.structures import Structure

_BEFORE = 2**32 - 1  # folded into the key of the first masks: no count is it


def check_inner(inner: Any) -> None:
    """Refuses what is no optimizer."""
    if isinstance(inner, optax.MultiSteps):
        raise ValueError(
            "`rewire(inner)` goes inside `MultiSteps`, which accumulates dense "
            "gradients: `optax.MultiSteps(jprune.rewire(...), k)`."
        )
    if not isinstance(inner, optax.GradientTransformation):
        raise ValueError(
            "`rewire(inner)` must be a gradient transformation, got "
            f"{describe(inner)}."
        )


def methods(
    drop: Criterion,
    grow: Criterion,
    structure: Structure,
    allocation: Allocation | None,
) -> tuple[Method, Method, Method]:
    """What drops connections, what grows them, and what draws the first."""
    dropping = method_of("rewire", drop, structure, allocation, "drop")
    growing = method_of("rewire", grow, structure, allocation, "grow")
    if structure.cost is not None and dropping.allocation.joint:
        raise ValueError(
            "`rewire(structure=..., allocation=...)`: in one ranking a sparsity "
            "of costs, `units(by=...)`, has no number of units that would stay "
            "the same; `uniform` has."
        )
    drawing = method_of("rewire", random(), structure, allocation)
    return dropping, growing, drawing


def first_masks(
    drawing: Method, params: Tree, sparsity: Any, key: jax.Array
) -> Masks:
    """Masks that are drawn before the first update."""
    counts = counts_of(drawing, params, sparsity)
    key = jax.random.fold_in(key, _BEFORE)
    drawn = find(drawing, params, counts, (), None, key, None)
    # Made from the parameters, so that they have their sharding.
    return jax.tree.map(
        lambda p, mask: jnp.ones_like(p, dtype=bool) & mask, params, drawn
    )


def refresh(
    dropping: Method,
    growing: Method,
    left: Wanted,
    after: Wanted,
    due: jax.Array,
    params: Tree,
    masks: Masks,
    states: dict[str, Any],
    grads: Tree,
    key: jax.Array,
) -> Masks:
    """The masks of this update: rewired if it is time.

    Args:
      dropping: What decides which connections are ``left``.
      growing: What decides which of the pruned ones are added to those.
      left: How many units the first keeps.
      after: How many there are in the end.
      due: Whether it is time.
      params, masks, grads: As they arrive.
      states: What the criteria remember.
      key: For those that draw.
    """
    for_drop, for_grow = jax.random.split(key)

    def rewired(now: tuple[jax.Array, Masks]) -> tuple[jax.Array, Masks]:
        due, masks = now
        kept = kept_units(dropping, masks)
        counts = left.counts(dropping, params)
        rest = find(
            dropping, params, counts, states["drop"], grads, for_drop, kept
        )
        kept = kept_units(growing, rest)
        counts = after.counts(growing, params)
        new = find(
            growing, params, counts, states["grow"], grads, for_grow, kept
        )
        return jnp.zeros_like(due), new

    # A loop of one pass at most, and no `cond`: under `vmap` that would rewire
    # at every step if each model has its own count.
    return lax.while_loop(lambda now: now[0], rewired, (due, masks))[1]


def sparse_step(
    inner: optax.GradientTransformationExtraArgs,
    updates: Tree,
    state: Any,
    params: Tree,
    masks: Masks,
    extra_args: dict[str, Any],
    skip: jax.Array | None,
) -> tuple[Tree, Any]:
    """A step of the inner optimizer, which sees nothing of pruned weights.

    Args:
      inner: The optimizer.
      updates, state, params: As for its ``update``.
      masks: Those in force.
      extra_args: Further arguments of ``update``.
      skip: Where it is True, nothing moves and the state stays.
    """
    if extra_args.get("grad") is not None:
        extra_args = {**extra_args, "grad": masked(extra_args["grad"], masks)}
    seen, values = masked(updates, masks), masked(params, masks)

    def step() -> tuple[Tree, Any]:
        moved, now = inner.update(seen, state, values, **extra_args)
        return moved, now

    def rest() -> tuple[Tree, Any]:
        moved, _ = jax.eval_shape(step)
        zeros = jax.tree.map(
            lambda u, p: jnp.zeros_like(p, dtype=u.dtype), moved, params
        )
        return zeros, state

    return step() if skip is None else lax.cond(skip, rest, step)


def masked(tree: Tree, masks: Masks) -> Tree:
    """Zero where a mask is False; leaves without masks as they are."""
    return jax.tree.map(
        lambda mask, x: x if is_hole(mask) else kept_only(mask, x),
        masks,
        tree,
        is_leaf=is_hole,
    )
