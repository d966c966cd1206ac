"""Gradients for what comes after the optimizer."""

from typing import Any

import optax

from jprune._core.calls import recorded
from jprune._core.describe import describe
from jprune._core.typing import Tree


@recorded
def with_gradients(
    tx: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Passes the raw gradient to every transform of a chain, as ``grad=``.

    The last transform of a chain sees only the update that the optimizer made
    from the gradient, but criteria such as :func:`jprune.criteria.taylor` need
    the gradient itself. Wrap the whole chain. Put the wrapper *inside*
    ``optax.MultiSteps``, so that the gradient is the accumulated one.

    Args:
      tx: A chain with transforms that read ``grad=``.

    Returns:
      A transform with the state of ``tx``. If the caller of ``update`` passes
      ``grad=``, that one is used instead.

    Raises:
      ValueError: ``tx`` is not a gradient transformation, or ``MultiSteps``.

    >>> import jax.numpy as jnp, optax, jprune
    >>> tx = jprune.with_gradients(optax.chain(
    ...     optax.adam(.1), jprune.prune(.5, criterion=jprune.criteria.taylor())))
    >>> params = jnp.array([[1., -4.]])
    >>> updates, state = tx.update(jnp.array([[6., 1.]]), tx.init(params), params)
    >>> jprune.get_masks(state)
    Array([[ True, False]], dtype=bool)
    """
    if isinstance(tx, optax.MultiSteps):
        raise ValueError(
            "`with_gradients(tx)` goes inside `MultiSteps`, whose steps "
            "accumulate: `optax.MultiSteps(jprune.with_gradients(...), k)`."
        )
    if not isinstance(tx, optax.GradientTransformation):
        raise ValueError(
            "`with_gradients(tx)` must be a gradient transformation, got "
            f"{describe(tx)}."
        )
    inner = optax.with_extra_args_support(tx)

    def update_fn(
        updates: Tree,
        state: Any,
        params: Tree | None = None,
        *,
        grad: Tree | None = None,
        **extra_args: Any,
    ) -> tuple[Tree, Any]:
        grad = updates if grad is None else grad
        updates, state = inner.update(
            updates, state, params, grad=grad, **extra_args
        )
        return updates, state

    return optax.GradientTransformationExtraArgs(inner.init, update_fn)
