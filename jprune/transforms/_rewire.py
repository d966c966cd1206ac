"""Dynamic sparse training: sparse from the first step to the last."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jprune._core.calls import recorded
from jprune._core.checks import (
    check_fixed,
    check_memory,
    check_params,
    check_state,
)
from jprune._core.paths import matched_to
from jprune._core.seeds import key_maker
from jprune._core.typing import Masks, Scalar, Sparsity, Tree, Where
from jprune._core.where import check_where
from jprune.allocations import Allocation
from jprune.choosing.choose import check_method
from jprune.choosing.targets import check_reach
from jprune.choosing.wanted import wanting
from jprune.criteria import Criterion, magnitude
from jprune.structures import Structure, unstructured
from jprune.transforms._keep_masks import mask_updates
from jprune.transforms._rewiring import (
    check_inner,
    first_masks,
    masked,
    methods,
    refresh,
    sparse_step,
)
from jprune.transforms._slots import find_slots, reset_slots
from jprune.transforms._timing import check_timing


class RewireState(NamedTuple):
    """The state of :func:`rewire`."""

    count: jax.Array  # type: ignore[assignment]  # int32 scalar, updates so far
    masks: Masks  # bool, like the parameters
    grow: Any  # the state of the grow criterion
    drop: Any  # the state of the drop criterion
    inner: Any  # the state of the inner optimizer


@recorded
def rewire(
    inner: optax.GradientTransformation,
    sparsity: Scalar,
    *,
    grow: Criterion,
    drop: Criterion = magnitude(),
    fraction: Sparsity | None = None,
    every: int = 100,
    start: int = 0,
    stop: int | None = None,
    replace_step: bool = False,
    structure: Structure = unstructured(),
    allocation: Allocation | None = None,
    where: Where = None,
    key: int | jax.Array = 0,
) -> optax.GradientTransformationExtraArgs:
    """Trains a network that is sparse from the start, and moves its connections.

    The first masks are drawn at random. At update counts ``start, start + every,
    ...`` up to ``stop``, jprune rewires the network: it drops a fraction of the
    kept units, those with the lowest ``drop`` scores, and grows as many of the
    units that are then pruned, those with the highest ``grow`` scores. A unit
    that was just dropped may grow again. The number of kept units never changes.

    The inner optimizer sees a gradient and a value of 0 for pruned weights. A
    new connection starts at zero, with the moments that ``inner.init`` gives,
    and a dropped connection leaves nothing behind. This holds for *slots of
    weights*: arrays in the inner state with the shape of their parameter,
    possibly with more axes in front. Statistics of many weights (Adafactor's
    factors, a norm per layer) stay as they are.

    Args:
      inner: The whole optimizer. A transform after ``rewire`` in a chain would
        revive pruned weights.
      sparsity: The fraction of units that is pruned, in [0, 1]: a number or a
        traced scalar.
      grow: Scores pruned units. It sees the dense gradients that ``update`` gets.
      drop: Scores kept units.
      fraction: The fraction of a pool's kept units that is dropped, in [0, 1]: a
        number, a traced scalar, or an optax schedule of the update count. Where
        it is 0 or not in [0, 1], nothing is rewired. Schedules are checked as in
        :func:`prune`. Default: a cosine from .3 to 0 at ``stop``.
      every: Number of updates between rewirings, at least 1.
      start: The count of the first rewiring.
      stop: The count after which masks no longer change. None: rewiring never stops.
      replace_step: Whether a rewiring replaces a step of the inner optimizer,
        as published, and does not count as a step. Otherwise it follows the step.
      structure: Which weights form a unit; see :mod:`jprune.structures`.
      allocation: How much is removed from each leaf, as in
        :func:`jprune.find_masks`.
      where: Which leaves are pruned, as in :func:`jprune.find_masks`.
      key: Seed or key of the first masks, and of criteria that draw at random;
        for these the update count is folded into it.

    Returns:
      An optimizer. Its state is a :class:`RewireState`. ``update`` needs
      ``params``, and passes extra arguments on to ``inner``. The parameters are
      sparse after the first update; ``apply_masks(params, get_masks(state))``
      makes them sparse before it.

    Raises:
      ValueError: Here for a bad number or a factory that was not called. In
        ``init`` for what depends on the parameters, and for an inner optimizer
        with a slot whose entries can't be assigned to weights (the slot is
        named). In ``update`` if ``params`` or an update is missing, or if the
        state belongs to another transform, as far as :func:`prune` can tell.

    Cost: between rewirings, one fused pass over parameters, gradients and slots.

    References:
      Mocanu et al., `Scalable training of artificial neural networks with
      adaptive sparse connectivity <https://arxiv.org/abs/1707.04780>`_, 2018;
      Evci et al., `Rigging the Lottery <https://arxiv.org/abs/1911.11134>`_,
      2020, algorithm 1.

    >>> import jax.numpy as jnp, optax, jprune
    >>> from jprune.criteria import gradient
    >>> tx = jprune.rewire(
    ...     optax.adam(.1), .75, grow=gradient(), fraction=.5, every=1)
    >>> params = jnp.arange(16.).reshape(4, 4)
    >>> state = tx.init(params)
    >>> updates, after = tx.update(params, state, params)
    >>> int(jnp.sum(after.masks)), int(jnp.sum(after.masks & ~state.masks))
    (4, 2)
    """
    check_inner(inner)
    dropping, growing, drawing = methods(drop, grow, structure, allocation)
    sparsity = check_fixed("rewire", sparsity)
    check_where("rewire", where)
    timing = check_timing(fraction, every, start, stop, replace_step)
    seed = key_maker("rewire", key)
    inner = optax.with_extra_args_support(inner)
    # Jitted once per transform, so that a loop without jit compiles it once.
    rewired = jax.jit(partial(refresh, dropping, growing))
    wanted_left, wanted_after = wanting(dropping), wanting(growing)

    def init_fn(params: Tree) -> RewireState:
        chosen = drawing.choose(where, params)
        check_method(dropping, chosen)
        check_method(growing, chosen)
        check_reach(drawing, chosen, sparsity)
        masks = first_masks(drawing, chosen, sparsity, seed())
        find_slots("rewire", inner, params, masks)
        return RewireState(
            count=jnp.zeros([], jnp.int32),
            masks=masks,
            grow=grow.init(chosen),
            drop=drop.init(chosen),
            inner=inner.init(masked(params, masks)),
        )

    def update_fn(
        updates: Tree,
        state: RewireState,
        params: Tree | None = None,
        **extra_args: Any,
    ) -> tuple[Tree, RewireState]:
        check_params("rewire", params)
        chosen = drawing.choose(where, params)
        check_state("rewire", state.masks, chosen)
        check_memory("rewire", grow.init, chosen, state.grow)
        check_memory("rewire", drop.init, chosen, state.drop)
        grads = matched_to(chosen, updates, "`rewire`, the updates", "gradient")
        remembered = {
            "grow": grow.update(grads, state.grow, chosen),
            "drop": drop.update(grads, state.drop, chosen),
        }
        due, dropped = timing.at(state.count)
        left = wanted_left(chosen, sparsity, dropped)
        due = left.if_valid(due)
        masks = state.masks
        if timing.ever:
            masks = rewired(
                left,
                wanted_after(chosen, sparsity),
                due,
                chosen,
                masks,
                remembered,
                grads,
                jax.random.fold_in(seed(), state.count),
            )
        moved, inner_state = sparse_step(
            inner,
            updates,
            state.inner,
            params,
            state.masks,
            extra_args,
            skip=due if replace_step else None,
        )
        # New connections start at zero, and of dropped ones nothing is left.
        active = jax.tree.map(jnp.logical_and, state.masks, masks)
        return mask_updates("rewire", moved, params, active), RewireState(
            count=optax.safe_increment(state.count),
            masks=masks,
            inner=reset_slots(inner, inner_state, params, active),
            **remembered,
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
