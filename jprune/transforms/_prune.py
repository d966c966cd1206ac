"""Gradual pruning."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jprune._core.calls import recorded
from jprune._core.checks import (
    check_every,
    check_memory,
    check_params,
    check_sparsity,
    check_state,
    rate_at,
)
from jprune._core.paths import matched_to
from jprune._core.seeds import key_maker
from jprune._core.typing import Masks, Sparsity, Tree, Where
from jprune._core.varying import vary_like
from jprune._core.where import check_where
from jprune._core.xla import not_hoisted
from jprune.allocations import Allocation
from jprune.choosing.choose import check_method, find
from jprune.choosing.families import Method, kept_units, method_of
from jprune.choosing.targets import Counts, check_reach, is_due
from jprune.choosing.wanted import Wanted, wanting
from jprune.criteria import Criterion, magnitude
from jprune.structures import Structure, unstructured
from jprune.transforms._keep_masks import mask_updates


class PruneState(NamedTuple):
    """The state of :func:`prune`."""

    count: jax.Array  # type: ignore[assignment]  # int32 scalar, updates so far
    masks: Masks  # bool, like the parameters
    criterion: Any  # the state of the criterion


@recorded
def prune(
    sparsity: Sparsity,
    *,
    criterion: Criterion = magnitude(),
    structure: Structure = unstructured(),
    allocation: Allocation | None = None,
    where: Where = None,
    every: int = 1,
    key: int | jax.Array = 0,
) -> optax.GradientTransformationExtraArgs:
    """Prunes while the model trains, and holds pruned weights at exactly zero.

    At update counts divisible by ``every``, jprune chooses new masks if the
    number of kept units is not what ``sparsity`` asks for. It scores the
    parameters that the update receives, so the first masks of ``prune(s)`` are
    ``find_masks(params, s)``. Pruned units stay pruned while the sparsity does
    not fall. When it falls, the pruned units with the best scores return. A step
    that chooses no masks costs as much as one of :func:`keep_masks`.

    Args:
      sparsity: The fraction of units removed, in [0, 1]: a number, a traced
        scalar, or an optax schedule of the update count
        (``optax.polynomial_schedule(0., .9, 3, 5000, 500)`` is the cubic one).
        ``prune`` checks a schedule at counts from 0 to 2**24, as int32 arrays.
        Masks do not change while a traced value is NaN or outside [0, 1].
      criterion: How weights are scored; see :mod:`jprune.criteria`.
      structure: Which weights form a unit; see :mod:`jprune.structures`.
      allocation: How much is removed from each leaf, as in
        :func:`jprune.find_masks`.
      where: Which leaves are pruned, as in :func:`jprune.find_masks`.
      every: Number of updates between choices of masks, at least 1.
      key: A seed or a random key of any form, for criteria that draw at random.
        The update count is folded into it.

    Returns:
      A transform for the end of a chain. Its state is a :class:`PruneState`.
      ``update`` needs ``params``, and also ``grad=`` if the criterion reads
      gradients: see :func:`jprune.with_gradients`.

    Raises:
      ValueError: Here for a bad number or a factory that was not called. In
        ``init`` for what depends on the parameters, such as a sparsity that the
        structure can't meet. In ``update`` if ``params`` or the update of a
        masked leaf is missing, or if the state belongs to another transform: its
        masks have other leaves or shapes, or the criterion's state has another
        form. A state with the same leaves but another structure or allocation
        is not detected: until new masks are chosen, a unit counts as kept if any
        of its weights is kept.

    References:
      Zhu and Gupta, `To prune, or not to prune
      <https://arxiv.org/abs/1710.01878>`_, 2017, equation 1.

    >>> import jax.numpy as jnp, optax, jprune
    >>> tx = optax.chain(optax.sgd(.1), jprune.prune(.5))
    >>> params = jnp.array([[1., -4.], [3., -2.]])
    >>> updates, state = tx.update(jnp.ones((2, 2)), tx.init(params), params)
    >>> optax.apply_updates(params, updates)
    Array([[ 0. , -4.1],
           [ 2.9,  0. ]], dtype=float32)
    """
    method = method_of("prune", criterion, structure, allocation)
    sparsity = check_sparsity("prune", sparsity)
    check_where("prune", where)
    every = check_every("prune", every)
    seed = key_maker("prune", key)
    # Jitted once per transform, so that a loop without jit compiles it once.
    refresh = jax.jit(partial(_refresh, method))
    wanted = wanting(method)

    def init_fn(params: Tree) -> PruneState:
        chosen = method.choose(where, params)
        check_method(method, chosen)
        check_reach(method, chosen, sparsity)
        return PruneState(
            count=jnp.zeros([], jnp.int32),
            masks=jax.tree.map(lambda p: jnp.ones_like(p, dtype=bool), chosen),
            criterion=criterion.init(chosen),
        )

    def update_fn(
        updates: Tree,
        state: PruneState,
        params: Tree | None = None,
        *,
        grad: Tree | None = None,
        **extra_args: Any,
    ) -> tuple[Tree, PruneState]:
        del extra_args  # for other links of the chain
        check_params("prune", params)
        chosen = method.choose(where, params)
        check_state("prune", state.masks, chosen)
        check_memory("prune", criterion.init, chosen, state.criterion)
        grads = None
        if grad is not None and criterion.reads_grads:
            grads = matched_to(chosen, grad, "`prune`, `grad=`", "gradient")
        remembered = criterion.update(grads, state.criterion, chosen)
        rate = rate_at("prune", sparsity, state.count)
        masks = refresh(
            wanted(chosen, rate),
            chosen,
            state.masks,
            remembered,
            grads,
            state.count,
            every,
            jax.random.fold_in(seed(), state.count),
        )
        return mask_updates("prune", updates, params, masks), PruneState(
            optax.safe_increment(state.count), masks, remembered
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _refresh(
    method: Method,
    wanted: Wanted,
    params: Tree,
    masks: Masks,
    state: Any,
    grads: Tree | None,
    count: jax.Array,
    every: Any,
    key: jax.Array,
) -> Masks:
    """The masks of this update: new ones if it is time and counts differ."""

    # One after the other and not nested: two branches that hold every leaf are
    # twice the work of compilation.
    def look(masks: Masks, params: Tree) -> tuple[jax.Array, jax.Array, Counts]:
        kept = kept_units(method, masks)
        counts = wanted.counts(method, params)
        due = wanted.if_valid(is_due(method, counts, kept))
        return due, kept.counts, counts

    def wait(masks: Masks, params: Tree) -> tuple[jax.Array, jax.Array, Counts]:
        types = jax.eval_shape(look, masks, params)
        none: tuple[jax.Array, jax.Array, Counts] = jax.tree.map(
            lambda x: vary_like(jnp.zeros(x.shape, x.dtype), x), types
        )
        return none

    def choose_again(now: tuple[jax.Array, Masks]) -> tuple[jax.Array, Masks]:
        # Nothing is scored before it is known that it must be.
        (due, masks), p, remembered, g = not_hoisted(
            (now, params, state, grads)
        )
        kept = kept_units(method, masks, marked)
        new = find(method, p, counts, remembered, g, key, kept)
        return jnp.zeros_like(due), new

    due, marked, counts = lax.cond(
        count % every == 0, look, wait, masks, params
    )
    # A loop of one pass at most, and no second `cond`: under `vmap` that would
    # choose at every step, a loop only where masks of any are due.
    return lax.while_loop(lambda now: now[0], choose_again, (due, masks))[1]
