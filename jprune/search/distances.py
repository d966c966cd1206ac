"""How far a smaller model's outputs are from the dense one's."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jprune._core.trees import at_least_float32, is_floating
from jprune._core.typing import Tree


def kl(dense: Tree, outputs: Tree) -> jax.Array:
    r"""Computes the mean Kullback-Leibler divergence of logits, without labels.

    .. math:: \mathrm{mean}\; \sum_c p_c \,(\log p_c - \log q_c)

    Here :math:`p` and :math:`q` are the softmax over the last axis of the dense and of
    the smaller model's outputs. If there are several floating outputs, it is the sum.

    Args:
      dense: Outputs of the dense model, ``[..., classes]`` each.
      outputs: Outputs of the smaller model.

    Returns:
      A scalar, in float32 at least.

    >>> import jax.numpy as jnp, jprune
    >>> float(jprune.search.kl(jnp.zeros((1, 2)), jnp.zeros((1, 2))))
    0.0
    """

    def one(p: jax.Array, q: jax.Array) -> jax.Array:
        p, q = jax.nn.log_softmax(p), jax.nn.log_softmax(q)
        # What the dense model excludes adds nothing: 0 times inf would be NaN.
        apart = jnp.where(p > -jnp.inf, jnp.exp(p) * (p - q), 0)
        return jnp.mean(jnp.sum(apart, -1))

    return _total(one, dense, outputs)


def squared_error(dense: Tree, outputs: Tree) -> jax.Array:
    r"""Computes the squared difference relative to the dense outputs' variance.

    It is for regression, embeddings and other outputs that are not logits:
    :math:`|Y - \hat Y|_F^2 / |Y - \bar Y|_F^2`, where :math:`\bar Y` is the mean over
    the batch. If there are several floating outputs, it is the sum.

    Args:
      dense: Outputs of the dense model, ``[batch, ...]`` each.
      outputs: Outputs of the smaller model.

    Returns:
      A scalar, in float32 at least.

    >>> import jax.numpy as jnp, jprune
    >>> y = jnp.array([[1.], [3.]])
    >>> float(jprune.search.squared_error(y, y + 1))
    1.0
    """

    def one(p: jax.Array, q: jax.Array) -> jax.Array:
        middle = jnp.mean(p, 0) if p.ndim else p
        spread = jnp.sum((p - middle) ** 2)
        apart = jnp.sum((p - q) ** 2)
        return apart / jnp.where(spread > 0, spread, 1)

    return _total(one, dense, outputs)


def _total(
    one: Callable[[jax.Array, jax.Array], jax.Array], dense: Tree, outputs: Tree
) -> jax.Array:
    pairs = zip(jax.tree.leaves(dense), jax.tree.leaves(outputs), strict=True)
    parts = [
        one(at_least_float32(p), at_least_float32(q))
        for p, q in pairs
        if is_floating(p)
    ]
    return jnp.sum(jnp.stack(parts))


def distance_of(outputs: Tree) -> Any:
    """The distance that suits some outputs: logits, or single numbers."""
    floating = [x for x in jax.tree.leaves(outputs) if is_floating(x)]
    single = all(x.ndim < 2 or x.shape[-1] == 1 for x in floating)
    return squared_error if single else kl
