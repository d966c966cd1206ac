"""Criteria: what matters. Higher scores are kept."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jprune._typing import Tree

__all__ = ["Criterion", "magnitude", "random"]


class Criterion(NamedTuple):
    """How weights are scored.

    Trees are like the parameters, with ``optax.MaskedNode`` where nothing is
    pruned; ``grads`` and ``key`` may be None.
    """

    init: Callable[[Tree], Any]  # params -> state
    update: Callable[[Tree, Any, Tree], Any]  # grads, state, params -> state
    score: Callable[..., Tree]  # params, state, grads, key -> scores


def _stateless(score: Callable[..., Tree]) -> Criterion:
    """A criterion that remembers nothing."""
    return Criterion(
        init=lambda params: (),
        update=lambda grads, state, params: (),
        score=score,
    )


def _wide(x: jax.typing.ArrayLike) -> jax.Array:
    """In float32 at least: 16-bit scores underflow."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def magnitude() -> Criterion:
    r"""Keeps the largest weights: the score is :math:`|w|`.

    Returns:
      A :class:`Criterion` without state; scores in float32 at least.

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
        return jax.tree.map(lambda p: jnp.abs(_wide(p)), params)

    return _stateless(score)


def random() -> Criterion:
    """Keeps weights at random: the baseline that every criterion must beat.

    Needs a key: ``find_masks(key=...)``, or the ``key`` of ``prune``, which is
    folded with the update count, so that a resumed run draws the same.

    Returns:
      A :class:`Criterion` without state; float32 scores, uniform in [0, 1), the
      same for any sharding.

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
        scores = [
            jax.random.uniform(jax.random.fold_in(key, i), jnp.shape(leaf))
            for i, leaf in enumerate(leaves)
        ]
        return jax.tree.unflatten(structure, scores)

    return _stateless(score)
