"""Gradual pruning."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jprune._amounts import counts_of, is_due
from jprune._calls import recorded
from jprune._checks import (
    check_every,
    check_params,
    check_sparsity,
    check_state,
    is_traced,
)
from jprune._find import check_method, find
from jprune._method import Method, kept_units
from jprune._paths import like
from jprune._trees import is_hole
from jprune._typing import Masks, Sparsity, Tree, Where
from jprune._where import check_where
from jprune.allocations import Allocation, uniform
from jprune.criteria import Criterion, magnitude
from jprune.structures import Structure, unstructured
from jprune.transforms._keep_masks import mask_updates


class PruneState(NamedTuple):
    """The state of :func:`prune`."""

    count: jax.Array  # type: ignore[assignment]  # int32 scalar, updates so far
    masks: Masks  # bool, like the parameters
    criterion: Any  # the criterion's own


@recorded
def prune(
    sparsity: Sparsity,
    *,
    criterion: Criterion = magnitude(),
    structure: Structure = unstructured(),
    allocation: Allocation = uniform(),
    where: Where = None,
    every: int = 1,
    key: int | jax.Array = 0,
) -> optax.GradientTransformationExtraArgs:
    """Prunes while the model trains, and holds what is pruned at exactly zero.

    At update counts divisible by ``every``, if the number of kept units is not
    what ``sparsity`` asks for, masks are chosen anew from the parameters that
    the update receives; so the first choice of ``prune(s)`` is
    ``find_masks(params, s)``. Pruned stays pruned while the target does not
    fall; when it falls the best-scored pruned units return. Between choices a
    step costs what :func:`keep_masks` does.

    Args:
      sparsity: The fraction of units removed, in [0, 1]: a number, a traced
        scalar, or an optax schedule of the update count
        (``optax.polynomial_schedule(0., .9, 3, 5000, 500)`` is the cubic one).
      criterion: What matters; see :mod:`jprune.criteria`.
      structure: In what shape; see :mod:`jprune.structures`.
      allocation: How much where; see :mod:`jprune.allocations`.
      where: Which leaves, as in :func:`jprune.find_masks`.
      every: Updates between choices, at least 1.
      key: Seed or key of criteria that draw at random; it is folded with the
        update count.

    Returns:
      A transform for the end of a chain. Its state is a :class:`PruneState`;
      ``update`` needs ``params``, and ``grad=`` if the criterion does: see
      :func:`jprune.with_gradients`.

    Raises:
      ValueError: Here for a bad number or an uncalled factory; in ``init`` for
        what depends on the parameters; in ``update`` if ``params`` is missing.

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
    method = Method("prune", criterion, structure, allocation)
    method.check()
    sparsity = check_sparsity("prune", sparsity)
    check_where("prune", where)
    every = check_every("prune", every)
    seed = key_maker(key)
    # Jitted once per transform, so that a loop without jit compiles it once.
    refresh = jax.jit(partial(_refresh, method), static_argnames="fixed")

    def init_fn(params: Tree) -> PruneState:
        chosen = method.choose(where, params)
        check_method(method, chosen)
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
        check_state("prune", state.masks)
        chosen = jax.tree.map(
            lambda mask, p: mask if is_hole(mask) else p,
            state.masks,
            params,
            is_leaf=is_hole,
        )
        grads = None
        if grad is not None and criterion.reads_grads:
            grads = like(chosen, grad, "`prune`, `grad=`", "gradient")
        remembered = criterion.update(grads, state.criterion, chosen)
        rate = sparsity(state.count) if callable(sparsity) else sparsity
        fixed, traced = (
            (None, rate)
            if isinstance(rate, jax.Array)
            else (
                float(rate),
                None,
            )
        )
        masks = refresh(
            chosen,
            state.masks,
            remembered,
            grads,
            state.count,
            every,
            jax.random.fold_in(seed(), state.count),
            traced,
            fixed=fixed,
        )
        return mask_updates(updates, params, masks), PruneState(
            optax.safe_increment(state.count), masks, remembered
        )

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _refresh(
    method: Method,
    params: Tree,
    masks: Masks,
    state: Any,
    grads: Tree | None,
    count: jax.Array,
    every: Any,
    key: jax.Array,
    traced: jax.Array | None,
    *,
    fixed: float | None,
) -> Masks:
    """The masks of this update: new ones if it is time and counts differ."""
    sparsity = traced if fixed is None else fixed

    # One after the other and not nested: two branches that hold every leaf are
    # twice the work of compilation.
    def look() -> tuple[jax.Array, jax.Array]:
        kept = kept_units(method, masks)
        counts = counts_of(method, params, sparsity)
        return is_due(method, counts, kept), kept.counts

    def wait() -> tuple[jax.Array, jax.Array]:
        due, marked = jax.eval_shape(look)
        return jnp.zeros(due.shape, bool), jnp.zeros(marked.shape, np.int32)

    def choose_again(now: tuple[jax.Array, Masks]) -> tuple[jax.Array, Masks]:
        # Behind a barrier, else the compiler scores before it knows that it must.
        (due, masks), p, remembered, g = lax.optimization_barrier(
            (now, params, state, grads)
        )
        counts = counts_of(method, p, sparsity)
        kept = kept_units(method, masks)._replace(counts=marked)
        new = find(method, p, counts, remembered, g, key, kept)
        return jnp.zeros_like(due), new

    due, marked = lax.cond(count % every == 0, look, wait)
    # A loop of one pass at most, and no second `cond`: under `vmap` that would
    # choose at every step, a loop only where masks of any are due.
    return lax.while_loop(lambda now: now[0], choose_again, (due, masks))[1]


def key_maker(key: Any) -> Any:
    """A function that makes the key where it is used.

    ``update`` must read no array made here: it could be donated, or be bound to
    another device.
    """
    if not isinstance(key, jax.Array) or is_traced(key):
        if isinstance(key, jax.Array) and jnp.issubdtype(
            key.dtype, jax.dtypes.prng_key
        ):
            return lambda: key
        return lambda: jax.random.key(key)
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        if key.ndim == 0:
            seed = int(key)
            return lambda: jax.random.key(seed)
        key = jax.random.wrap_key_data(key)
    data, impl = np.asarray(jax.random.key_data(key)), jax.random.key_impl(key)
    return lambda: jax.random.wrap_key_data(jnp.asarray(data), impl=impl)
