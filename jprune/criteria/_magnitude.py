"""The size of a weight."""

from typing import Any

import jax
import jax.numpy as jnp

from jprune._core.calls import recorded
from jprune._core.trees import at_least_float32
from jprune._core.typing import Tree
from jprune.criteria._base import Criterion, stateless


@recorded
def magnitude() -> Criterion:
    r"""Keeps the largest weights: the score is :math:`|w|`.

    Returns:
      A :class:`Criterion` without state; scores in float32 at least. Where they are
      only compared, those of 16-bit weights are held in 16 bits.

    References:
      Han et al., `Learning both Weights and Connections for Efficient Neural
      Networks <https://arxiv.org/abs/1506.02626>`_, 2015, section 3.

    >>> import jax.numpy as jnp, jprune
    >>> jprune.find_masks(jnp.array([[1., -4.], [3., -2.]]), .5,
    ...                   criterion=jprune.criteria.magnitude())
    Array([[False,  True],
           [ True, False]], dtype=bool)
    """

    def score(params: Tree, state: Any, grads: Any, key: Any) -> Tree:
        del state, grads, key  # the weights say it all
        return jax.tree.map(lambda p: jnp.abs(at_least_float32(p)), params)

    return stateless(score, reads_grads=False)._replace(exact=True)
