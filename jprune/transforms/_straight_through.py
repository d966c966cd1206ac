"""Masked in the forward pass, dense in the backward pass."""

from typing import Any

import jax
import jax.numpy as jnp

from jprune._core.checks import check_not_negative
from jprune._core.trees import kept_only, leaves_with_path, rebuild
from jprune._core.typing import Masks, Scalar, Tree
from jprune.masks import align_masks


def straight_through(
    params: Tree, masks: Masks, *, decay: Scalar = 0.0
) -> Tree:
    r"""Masks parameters but passes gradients on to all weights, pruned ones too.

    .. math::

      \tilde w = m \odot w, \qquad
      \frac{\partial L}{\partial w} := \frac{\partial L}{\partial \tilde w}
      + \lambda \, (1 - m) \odot w

    The optimizer trains dense weights, and the model sees them masked. A pruned
    weight can return when masks are chosen again, which may be at every step.

    Args:
      params: A tree of parameters, boxed or not.
      masks: Masks for it, as for :func:`jprune.apply_masks`.
      decay: :math:`\lambda`: pulls pruned weights towards zero so that they
        return less often (SR-STE). It is added to the gradient in the backward
        pass, so a scale of the loss does not apply to it.

    Returns:
      A tree like ``params``, with the same shapes and dtypes. The values are
      those of :func:`jprune.apply_masks`; only the gradient differs.

    Raises:
      ValueError: ``masks`` does not fit ``params`` (the leaf is named), or a
        concrete ``decay`` is negative.

    Cost: one pass that the compiler fuses.

    References:
      Bengio et al., `Estimating or Propagating Gradients Through Stochastic
      Neurons <https://arxiv.org/abs/1308.3432>`_, 2013; Zhou et al., `Learning
      N:M Fine-grained Structured Sparse Neural Networks From Scratch
      <https://arxiv.org/abs/2102.04010>`_, 2021, equation 9.

    >>> import jax, jax.numpy as jnp, jprune
    >>> def loss(params):
    ...     masks = jprune.find_masks(params, .5)
    ...     return jnp.sum(jprune.straight_through(params, masks) ** 2)
    >>> params = jnp.array([[1., -4.], [3., -2.]])
    >>> jax.value_and_grad(loss)(params)
    (Array(25., dtype=float32), Array([[ 0., -8.],
           [ 6.,  0.]], dtype=float32))
    """
    call = "`straight_through(params, masks)`"
    rate = check_not_negative("`straight_through(decay=...)`", decay)

    def leaf(p: Any, mask: Any) -> Any:
        if mask is None:
            return p
        if not isinstance(rate, float) or rate:
            p = _decayed(jnp.asarray(p), mask, rate)
        return _masked(p, mask)

    leaves = [
        leaf(p, mask)
        for (_, p), mask in zip(
            leaves_with_path(params),
            align_masks(call, params, masks),
            strict=True,
        )
    ]
    return rebuild(params, leaves)


# Rules and not `p + stop_gradient(masked - p)`, which is NaN where p is NaN.


@jax.custom_jvp
def _masked(p: Any, mask: Any) -> jax.Array:
    return kept_only(mask, p)


@_masked.defjvp
def _masked_jvp(primals: Any, tangents: Any) -> Any:
    return _masked(*primals), tangents[0]


@jax.custom_vjp
def _decayed(p: jax.Array, mask: Any, decay: Any) -> jax.Array:
    """``p``, whose gradient gains ``decay`` times what is pruned."""
    del mask, decay  # for the gradient
    return p


def _decayed_fwd(p: Any, mask: Any, decay: Any) -> Any:
    return p, (p, mask, decay)


def _decayed_bwd(held: Any, gradient: Any) -> Any:
    p, mask, decay = held
    pull = jnp.asarray(decay, p.dtype) * p
    return gradient + kept_only(jnp.logical_not(mask), pull), None, None


_decayed.defvjp(_decayed_fwd, _decayed_bwd)
