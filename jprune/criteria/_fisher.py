"""The empirical Fisher information."""

import jax.numpy as jnp

from jprune._core.calls import recorded
from jprune.criteria._base import Criterion, accumulated


@recorded
def fisher() -> Criterion:
    r"""Keeps the weights to which the loss is most sensitive, to second order.

    .. math::

      S_i = \sum_t (w_i^{(t)} g_i^{(t)})^2

    The sum is over all updates so far. The mean of :math:`g^2` estimates the
    diagonal of the Fisher information, which near a minimum is that of the Hessian.
    Without :math:`w_i` the loss rises by about half of it times :math:`w_i^2`.

    It needs gradients, as :func:`gradient` does. The smaller the batches, the better
    the estimate. Products below 1e-19 lose their order, because their squares are 0
    in float32; :func:`taylor` keeps their order.

    Returns:
      A :class:`Criterion`. Its state holds the sums, in float32 at least, like the
      parameters. Cost: one fused pass per update.

    References:
      Theis et al., `Faster gaze prediction with dense networks and Fisher
      pruning <https://arxiv.org/abs/1801.05787>`_, 2018, section 2; Singh and
      Alistarh, `WoodFisher <https://arxiv.org/abs/2004.14340>`_, 2020.

    >>> import jax.numpy as jnp, jprune
    >>> jprune.find_masks(jnp.array([[1., -4.]]), .5,
    ...                   grads=jnp.array([[6., 1.]]),
    ...                   criterion=jprune.criteria.fisher())
    Array([[ True, False]], dtype=bool)
    """
    return accumulated("fisher()", jnp.square)
