"""Dynamic sparse training: sparse from the first step to the last."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jprune._core.calls import recorded
from jprune._core.checks import (
    check_every,
    check_fixed,
    check_memory,
    check_params,
    check_rate,
    check_sparsity,
    check_state,
    is_fraction,
)
from jprune._core.describe import describe
from jprune._core.paths import matched_to
from jprune._core.seeds import key_maker
from jprune._core.trees import is_hole, kept_only
from jprune._core.typing import Masks, Scalar, Sparsity, Tree, Where
from jprune._core.where import check_where
from jprune.allocations import Allocation, uniform
from jprune.choosing.choose import check_method, find
from jprune.choosing.families import Method, kept_units
from jprune.choosing.targets import (
    Counts,
    check_reach,
    counts_of,
    counts_on_host,
)
from jprune.criteria import Criterion, gradient, magnitude, random
from jprune.structures import Structure, unstructured
from jprune.transforms._keep_masks import mask_updates
from jprune.transforms._slots import find_slots, reset_slots

_BEFORE = 2**32 - 1  # folded into the key of the first masks: no count is it


class RewireState(NamedTuple):
    """The state of :func:`rewire`."""

    count: jax.Array  # type: ignore[assignment]  # int32 scalar, updates so far
    masks: Masks  # bool, like the parameters
    grow: Any  # the grow criterion's own
    drop: Any  # the drop criterion's own
    inner: Any  # the inner optimizer's


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
    allocation: Allocation = uniform(),
    where: Where = None,
    key: int | jax.Array = 0,
) -> optax.GradientTransformationExtraArgs:
    """Trains a network that is sparse from the first step, and rewires it.

    The first masks are drawn at random. At update counts ``start, start + every,
    ...`` up to ``stop`` a fraction of the kept units is dropped, those of the
    lowest ``drop`` score, and as many grow, those of the highest ``grow`` score
    of all that are then pruned; so the best of the dropped may stay. The number
    of kept units never changes.

    The inner optimizer sees no gradient and no value of a pruned weight. A new
    connection starts at zero, and its moments are what ``inner.init`` gives; of
    a dropped one nothing is left behind. That holds for *slots of weights*:
    arrays in the inner state that have the shape of their parameter, perhaps
    with more axes in front. Statistics of many weights (Adafactor's factors,
    a norm per layer) stay as they are.

    Args:
      inner: The optimizer, whole: what comes after it in a chain would revive
        pruned weights.
      sparsity: The fraction of units that is pruned, in [0, 1]: a number or a
        traced scalar.
      grow: What new connections are worth. It sees the dense gradients, as they
        arrive here.
      drop: What kept connections are worth.
      fraction: The fraction of a pool's kept units that is dropped, in [0, 1]: a
        number, a traced scalar, or an optax schedule of the update count. Where
        it is 0, or not in [0, 1], nothing is rewired; schedules are tried as by
        :func:`prune`. Default: a cosine from .3 to 0 at ``stop``.
      every: Updates between rewirings, at least 1.
      start: The count of the first rewiring.
      stop: The count after which masks stay; None: they never do.
      replace_step: Whether a rewiring takes the place of a step of the inner
        optimizer, as published, and counts as none. Else it follows the step.
      structure: In what shape; see :mod:`jprune.structures`.
      allocation: How much where; see :mod:`jprune.allocations`.
      where: Which leaves, as in :func:`jprune.find_masks`.
      key: Seed or key of the first masks and of criteria that draw at random;
        for these it is folded with the update count.

    Returns:
      An optimizer. Its state is a :class:`RewireState`; ``update`` needs
      ``params``, and hands extra arguments on to ``inner``. The parameters are
      sparse from the first update on; ``apply_masks(params, get_masks(state))``
      makes them so before.

    Raises:
      ValueError: Here for a bad number or an uncalled factory; in ``init`` for
        what depends on the parameters, and for an inner optimizer with a slot
        whose entries can't be told apart (the slot is named); in ``update`` if
        ``params`` or an update is missing, or if the state is not of this
        transform, as far as :func:`prune` can tell.

    Cost: between rewirings one fused pass over parameters, gradients and slots.

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
    check_inner("rewire", inner)
    dropping = Method("rewire", drop, structure, allocation, "drop")
    growing = Method("rewire", grow, structure, allocation, "grow")
    at_random = Method("rewire", random(), structure, allocation)
    dropping.check()
    growing.check()
    if structure.cost is not None and allocation.joint:
        raise ValueError(
            "`rewire(structure=..., allocation=...)`: in one ranking a sparsity "
            "of costs, `units(by=...)`, has no number of units that would stay "
            "the same; `uniform` has."
        )
    sparsity = check_fixed("rewire", sparsity)
    check_where("rewire", where)
    every = check_every("rewire", every)
    start = check_every("rewire", start, "start", least=0)
    if stop is not None:
        stop = check_every("rewire", stop, "stop")
    elif fraction is None:
        raise ValueError(
            "`rewire(stop=...)` must be an integer >= 1, got None: the default "
            "`fraction` is a cosine from .3 to 0 at `stop`."
        )
    if fraction is None:
        fraction = _cosine(0.3, stop)
    fraction = check_sparsity("rewire", fraction, "fraction")
    seed = key_maker("rewire", key)
    inner = optax.with_extra_args_support(inner)
    # Jitted once per transform, so that a loop without jit compiles it once.
    refresh = jax.jit(partial(_refresh, dropping, growing), static_argnums=0)
    known_left, known = map(counts_on_host, (dropping, growing))

    def init_fn(params: Tree) -> RewireState:
        chosen = at_random.choose(where, params)
        check_method(dropping, chosen)
        check_method(growing, chosen)
        check_reach(at_random, chosen, sparsity)
        counts = counts_of(at_random, chosen, sparsity)
        first = jax.random.fold_in(seed(), _BEFORE)
        drawn = find(at_random, chosen, counts, (), None, first, None)
        # Made from the parameters, so that they have their sharding.
        masks = jax.tree.map(
            lambda p, mask: jnp.ones_like(p, dtype=bool) & mask, chosen, drawn
        )
        find_slots("rewire", inner, params, masks)
        return RewireState(
            count=jnp.zeros([], jnp.int32),
            masks=masks,
            grow=grow.init(chosen),
            drop=drop.init(chosen),
            inner=inner.init(_masked(params, masks)),
        )

    def update_fn(
        updates: Tree,
        state: RewireState,
        params: Tree | None = None,
        **extra_args: Any,
    ) -> tuple[Tree, RewireState]:
        check_params("rewire", params)
        chosen = at_random.choose(where, params)
        check_state("rewire", state.masks, chosen)
        check_memory("rewire", grow.init, chosen, state.grow)
        check_memory("rewire", drop.init, chosen, state.drop)
        grads = matched_to(chosen, updates, "`rewire`, the updates", "gradient")
        remembered = {
            "grow": grow.update(grads, state.grow, chosen),
            "drop": drop.update(grads, state.drop, chosen),
        }
        # A rewiring that replaces a step lies between two counts of steps.
        turn, rest = jnp.divmod(state.count - start, every + replace_step)
        step = start + turn * every
        rate: Any = fraction
        if callable(fraction):
            rate = fraction(step)
            if not isinstance(rate, jax.Array):
                rate = check_rate("rewire", rate, step, "fraction")
        due = (state.count >= start) & (rest == 0) & (rate > 0)
        if stop is not None:
            due &= step <= stop
        numbers: tuple[Any, Any] = sparsity, rate
        for number in filter(_has_bits, numbers):
            due &= is_fraction(number)  # else masks stay as they are
        counts = None
        if not any(map(_has_bits, numbers)):
            counts = known_left(chosen, sparsity, rate), known(chosen, sparsity)
            numbers = None, None
        masks = state.masks
        if not isinstance(fraction, float) or fraction:
            masks = refresh(
                tuple(None if _has_bits(x) else x for x in numbers),
                tuple(x if _has_bits(x) else None for x in numbers),
                counts,
                due,
                chosen,
                state.masks,
                remembered,
                grads,
                jax.random.fold_in(seed(), state.count),
            )
        active = jax.tree.map(jnp.logical_and, state.masks, masks)

        if extra_args.get("grad") is not None:
            extra_args["grad"] = _masked(extra_args["grad"], state.masks)
        seen, values = (_masked(x, state.masks) for x in (updates, params))

        def take_step() -> tuple[Tree, Any]:
            return inner.update(seen, state.inner, values, **extra_args)

        def skip_step() -> tuple[Tree, Any]:
            moved, _ = jax.eval_shape(take_step)
            zeros = jax.tree.map(
                lambda u, p: jnp.zeros_like(p, dtype=u.dtype), moved, params
            )
            return zeros, state.inner

        if replace_step:
            moved, inner_state = lax.cond(due, skip_step, take_step)
        else:
            moved, inner_state = take_step()
        return mask_updates("rewire", moved, params, active), RewireState(
            count=optax.safe_increment(state.count),
            masks=masks,
            inner=reset_slots(inner, inner_state, params, active),
            **remembered,
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


@recorded
def rigl(
    inner: optax.GradientTransformation,
    sparsity: Scalar,
    *,
    drop: Criterion = magnitude(),
    fraction: Sparsity | None = None,
    every: int = 100,
    start: int = 0,
    stop: int | None = None,
    replace_step: bool = False,
    structure: Structure = unstructured(),
    allocation: Allocation = uniform(),
    where: Where = None,
    key: int | jax.Array = 0,
) -> optax.GradientTransformationExtraArgs:
    """RigL: :func:`rewire` that grows where the dense gradient is largest.

    Args:
      inner: The optimizer, whole.
      sparsity: The fraction of units that is pruned.
      drop, fraction, every, start, stop: As in :func:`rewire`; ``stop`` or
        ``fraction`` is needed.
      replace_step, structure, allocation, where, key: As in :func:`rewire`.

    Returns:
      ``rewire(inner, sparsity, grow=gradient(), ...)``.

    References:
      Evci et al., `Rigging the Lottery <https://arxiv.org/abs/1911.11134>`_,
      2020. The published protocol is ``replace_step=True``.

    >>> import optax, jprune
    >>> tx = jprune.rigl(optax.adam(1e-3), .9, every=100, stop=25_000)
    """
    return rewire(
        inner,
        sparsity,
        grow=gradient(),
        drop=drop,
        fraction=fraction,
        every=every,
        start=start,
        stop=stop,
        replace_step=replace_step,
        structure=structure,
        allocation=allocation,
        where=where,
        key=key,
    )


@recorded
def sparse_evolution(
    inner: optax.GradientTransformation,
    sparsity: Scalar,
    *,
    drop: Criterion = magnitude(),
    fraction: Sparsity | None = None,
    every: int = 100,
    start: int = 0,
    stop: int | None = None,
    replace_step: bool = False,
    structure: Structure = unstructured(),
    allocation: Allocation = uniform(),
    where: Where = None,
    key: int | jax.Array = 0,
) -> optax.GradientTransformationExtraArgs:
    """SET, sparse evolutionary training: :func:`rewire` that grows at random.

    Args:
      inner: The optimizer, whole.
      sparsity: The fraction of units that is pruned.
      drop, fraction, every, start, stop: As in :func:`rewire`; ``stop`` or
        ``fraction`` is needed.
      replace_step, structure, allocation, where, key: As in :func:`rewire`.

    Returns:
      ``rewire(inner, sparsity, grow=random(), ...)``.

    References:
      Mocanu et al., `Scalable training of artificial neural networks with
      adaptive sparse connectivity <https://arxiv.org/abs/1707.04780>`_, 2018,
      algorithm 2, with the smallest magnitudes of either sign dropped.

    >>> import optax, jprune
    >>> tx = jprune.sparse_evolution(optax.adam(1e-3), .9, fraction=.3, every=100)
    """
    return rewire(
        inner,
        sparsity,
        grow=random(),
        drop=drop,
        fraction=fraction,
        every=every,
        start=start,
        stop=stop,
        replace_step=replace_step,
        structure=structure,
        allocation=allocation,
        where=where,
        key=key,
    )


def check_inner(call: str, inner: Any) -> None:
    """Refuses what is no optimizer."""
    if isinstance(inner, optax.MultiSteps):
        raise ValueError(
            f"`{call}(inner)` goes inside `MultiSteps`, which accumulates dense "
            f"gradients: `optax.MultiSteps(jprune.{call}(...), k)`."
        )
    if not isinstance(inner, optax.GradientTransformation):
        raise ValueError(
            f"`{call}(inner)` must be a gradient transformation, got "
            f"{describe(inner)}."
        )


def _cosine(start: float, stop: Any) -> optax.Schedule:
    schedule = optax.cosine_decay_schedule(start, stop)

    def fraction(count: Any) -> Any:
        # It divides integers, which strict promotion refuses.
        with jax.numpy_dtype_promotion("standard"):
            return schedule(count)

    return fraction


def _has_bits(number: Any) -> bool:
    """Whether a number is an array, traced or not."""
    return isinstance(number, jax.Array)


def _masked(tree: Tree, masks: Masks) -> Tree:
    """Zero where a mask is False."""

    def leaf(mask: Any, x: Any) -> Any:
        return x if is_hole(mask) else kept_only(mask, x)

    return jax.tree.map(leaf, masks, tree, is_leaf=is_hole)


def _refresh(
    dropping: Method,
    growing: Method,
    fixed: tuple[float | None, ...],
    traced: tuple[jax.Array | None, ...],
    known: tuple[Counts, Counts] | None,
    due: jax.Array,
    params: Tree,
    masks: Masks,
    states: dict[str, Any],
    grads: Tree,
    key: jax.Array,
) -> Masks:
    """The masks of this update: rewired if it is time.

    Either sparsity and fraction are given, ``fixed`` or ``traced``, or the counts
    are ``known``: those that are left, and those in the end.
    """

    def wanted() -> tuple[Counts, Counts]:
        if known is not None:
            return known
        sparsity, fraction = (
            t if f is None else f for f, t in zip(fixed, traced, strict=True)
        )
        return (
            counts_of(dropping, params, sparsity, fraction),
            counts_of(growing, params, sparsity),
        )

    for_drop, for_grow = jax.random.split(key)

    def rewired(now: tuple[jax.Array, Masks]) -> tuple[jax.Array, Masks]:
        due, masks = now
        left, counts = wanted()
        kept = kept_units(dropping, masks)
        rest = find(
            dropping, params, left, states["drop"], grads, for_drop, kept
        )
        kept = kept_units(growing, rest)
        new = find(
            growing, params, counts, states["grow"], grads, for_grow, kept
        )
        return jnp.zeros_like(due), new

    # A loop of one pass at most, and no `cond`: under `vmap` that would rewire
    # at every step if each model has its own count.
    return lax.while_loop(lambda now: now[0], rewired, (due, masks))[1]
