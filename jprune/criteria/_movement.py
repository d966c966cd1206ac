"""Movement: weights that training moves away from zero."""

import jax.numpy as jnp

from jprune._core.calls import recorded
from jprune.criteria._base import Criterion, accumulated


@recorded
def movement() -> Criterion:
    r"""Keeps the weights that training moves away from zero.

    .. math::

      S_i = -\sum_t w_i^{(t)} g_i^{(t)}

    The sum is over all updates so far. It is positive where gradient descent makes
    :math:`|w_i|` grow. The criterion is meant for fine-tuning. A pruned weight is
    zero, so its score does not change. If a structure pools by a norm, as by
    default, the norm of the negative scores is subtracted from that of the positive
    ones. It needs gradients, as :func:`gradient` does.

    Returns:
      A :class:`Criterion`. Its state holds the sums, in float32 at least, like the
      parameters. Cost: one fused pass per update.

    References:
      Sanh et al., `Movement Pruning <https://arxiv.org/abs/2005.07683>`_, 2020,
      section 4.

    >>> import jax.numpy as jnp, optax, jprune
    >>> tx = jprune.with_gradients(optax.chain(
    ...     optax.sgd(.1), jprune.prune(.5, criterion=jprune.criteria.movement())))
    >>> params = jnp.array([[1., -4.]])
    >>> updates, state = tx.update(jnp.array([[-1., -1.]]), tx.init(params), params)
    >>> optax.apply_updates(params, updates)  # 1 grows, -4 shrinks
    Array([[1.1, 0. ]], dtype=float32)
    """
    criterion = accumulated("movement()", jnp.negative)
    return criterion._replace(signed=True)
