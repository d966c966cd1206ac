"""Chance."""

from typing import Any

import jax
import jax.numpy as jnp

from jprune._core.calls import recorded
from jprune._core.typing import Tree
from jprune.criteria._base import Criterion, stateless


@recorded
def random() -> Criterion:
    """Keeps weights at random: the baseline that every criterion must beat.

    It needs a key: pass ``find_masks(key=...)`` or ``prune(key=...)``. ``prune``
    folds the update count into the key, so a resumed run draws the same scores.

    Returns:
      A :class:`Criterion` without state; float32 scores, uniform in [0, 1), the
      same for any sharding.

    References:
      Liu et al., `The Unreasonable Effectiveness of Random Pruning
      <https://arxiv.org/abs/2202.02643>`_, 2022.

    >>> import jax, jax.numpy as jnp, jprune
    >>> masks = jprune.find_masks(jnp.ones((4, 4)), .5, key=jax.random.key(0),
    ...                           criterion=jprune.criteria.random())
    >>> int(masks.sum())
    8
    """

    def score(params: Tree, state: Any, grads: Any, key: Any) -> Tree:
        del state, grads  # only the shapes of the parameters count
        if key is None:
            raise ValueError(
                "`random()` needs a key: `find_masks(..., key=jax.random.key(0))`"
                ", got key=None."
            )
        leaves, structure = jax.tree.flatten(params)

        def drawn(i: int, leaf: Any) -> jax.Array:
            x = jax.random.uniform(jax.random.fold_in(key, i), jnp.shape(leaf))
            return jnp.zeros_like(leaf, x.dtype) + x  # laid out like the leaf

        scores = [drawn(i, leaf) for i, leaf in enumerate(leaves)]
        return jax.tree.unflatten(structure, scores)

    return stateless(score, reads_grads=False)
