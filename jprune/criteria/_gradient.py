"""The gradient of a step, alone or times the weight."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jprune._core.calls import recorded
from jprune._core.trees import at_least_float32
from jprune._core.typing import Tree
from jprune.criteria._base import Criterion, product, required, stateless


@recorded
def gradient() -> Criterion:
    r"""Keeps the weights with the largest gradients: :math:`|g|`.

    It needs gradients: pass ``find_masks(grads=...)``, or put
    :func:`jprune.with_gradients` around the chain.

    Returns:
      A :class:`Criterion` without state; scores in float32 at least.

    References:
      Evci et al., `Rigging the Lottery <https://arxiv.org/abs/1911.11134>`_,
      2020, section 3: the score by which weights are grown.

    >>> import jax.numpy as jnp, jprune
    >>> jprune.find_masks(jnp.ones((1, 3)), 1 / 3,
    ...                   grads=jnp.array([[2., -.1, -3.]]),
    ...                   criterion=jprune.criteria.gradient())
    Array([[ True, False,  True]], dtype=bool)
    """

    def score(params: Tree, state: Any, grads: Any, key: Any) -> Tree:
        del state, key  # the gradients say it all
        grads = required("gradient()", params, grads)
        return jax.tree.map(lambda g: jnp.abs(at_least_float32(g)), grads)

    return stateless(score, reads_grads=True)


@recorded
def taylor(
    form: Literal["absolute", "signed", "squared"] = "absolute",
) -> Criterion:
    r"""Keeps the weights whose removal changes the loss most, to first order.

    Without the weights :math:`S` the loss changes by about
    :math:`-\sum_{i \in S} w_i g_i`. It needs gradients, as :func:`gradient` does.

    Args:
      form: How the products :math:`w_i g_i` make the score of a weight, and of
        a unit whose weights a structure pools. Static.

        - ``"absolute"``: :math:`|w_i g_i|`, then pooled: products of either
          sign count the same. Pooled by L2, units rank by
          :math:`\sum_i (w_i g_i)^2` (Molchanov et al. 2019).
        - ``"signed"``: :math:`-w_i g_i`, then pooled: weights whose removal lowers
          the loss go first. Pooled by the mean, units rank by the change of the
          loss.
        - ``"squared"``: :math:`w_i g_i`, pooled, then squared. Pooled by the
          mean, units rank by :math:`(\sum_i w_i g_i)^2`: products of opposite
          sign cancel (the group form of Molchanov et al. 2019). The score is
          the magnitude, which has the order of the square.

        The last two are meant for structures that pool by the mean. If a structure
        pools by a norm, as by default, the norm of the negative scores is subtracted
        from that of the positive ones. ``"squared"`` ranks single weights as
        ``"absolute"`` does.

    Returns:
      A :class:`Criterion` without state; scores in float32 at least.

    Raises:
      ValueError: ``form`` is unknown; when used, if gradients are missing.

    References:
      Molchanov et al., `Pruning Convolutional Neural Networks for Resource
      Efficient Inference <https://arxiv.org/abs/1611.06440>`_, 2017; Molchanov
      et al., `Importance Estimation for Neural Network Pruning
      <https://arxiv.org/abs/1906.10771>`_, 2019, section 3.

    >>> import jax.numpy as jnp, jprune
    >>> params, grads = jnp.array([[1., 2., 3.]]), jnp.array([[5., -4., 1.]])
    >>> def find(form):
    ...     return jprune.find_masks(params, 1 / 3, grads=grads,
    ...                              criterion=jprune.criteria.taylor(form))
    >>> find("absolute"), find("signed")
    (Array([[ True,  True, False]], dtype=bool), Array([[False,  True,  True]], dtype=bool))
    """
    forms: dict[str, Callable[[jax.Array], jax.Array]] = {
        "absolute": jnp.abs,
        "signed": jnp.negative,
        "squared": lambda x: x,
    }
    if form not in forms:
        raise ValueError(
            f"`taylor(form)` must be one of {', '.join(map(repr, forms))}, got "
            f"{form!r}."
        )

    def score(params: Tree, state: Any, grads: Any, key: Any) -> Tree:
        del state, key  # the products say it all
        grads = required("taylor()", params, grads)
        return jax.tree.map(
            lambda w, g: forms[form](product(w, g)), params, grads
        )

    criterion = stateless(score, reads_grads=True)
    if form == "absolute":
        return criterion
    if form == "signed":
        return criterion._replace(signed=True)
    return criterion._replace(
        # Squares of what is below 1e-19 would not be floats.
        pooled=lambda units: jax.tree.map(jnp.abs, units),
        signed=True,
    )
