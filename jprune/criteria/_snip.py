"""SNIP: what a batch says before training."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jprune._core.calls import recorded
from jprune._core.describe import describe
from jprune._core.paths import matched_to
from jprune._core.trees import is_floating
from jprune._core.typing import Tree
from jprune.criteria._base import Criterion, product


def snip(
    loss: Callable[[Tree, Any], jax.typing.ArrayLike], params: Tree, batch: Any
) -> Criterion:
    r"""Keeps the connections that matter before any training: :math:`|w g|`.

    The gradients :math:`g` are those of ``loss(params, batch)``, taken once at these
    parameters; later gradients do not change the scores. The published method ranks
    all connections of the network together: ``allocation=global_ranking()``.

    Args:
      loss: ``(params, batch) -> scalar``, differentiable.
      params: The parameters at initialisation: the whole tree to be pruned.
      batch: The other argument of ``loss``; a larger batch gives steadier scores.

    Returns:
      A :class:`Criterion`. Its state holds the scores, in float32 at least, like the
      parameters. The criterion stores them, also when it is pickled or printed; it
      no longer needs ``loss``, ``params`` or ``batch``.

    References:
      Lee et al., `SNIP: Single-shot Network Pruning based on Connection
      Sensitivity <https://arxiv.org/abs/1810.02340>`_, 2019, section 4.

    >>> import jax.numpy as jnp, jprune
    >>> def loss(w, x):
    ...     return jnp.sum((x @ w) ** 2)
    >>> w = jnp.array([[1.], [-2.]])
    >>> criterion = jprune.criteria.snip(loss, w, jnp.array([[3., 1.]]))
    >>> jprune.find_masks(w, .5, criterion=criterion)  # |w g| = 6 and 4
    Array([[ True],
           [False]], dtype=bool)
    """
    if not callable(loss):
        raise ValueError(
            "`snip(loss, params, batch)`: loss must be a function of params and "
            f"batch, got {describe(loss)}."
        )
    grads = jax.grad(loss, allow_int=True)(params, batch)
    scores = jax.tree.map(
        lambda w, g: jnp.abs(product(w, g)) if is_floating(w) else None,
        params,
        grads,
    )
    return _snip(scores)


@recorded
def _snip(scores: Tree) -> Criterion:
    """Scores that stay, as a state."""

    def init(chosen: Tree) -> Tree:
        mine = matched_to(
            chosen, scores, "`snip(loss, params, batch)`", "score"
        )
        # A copy: the state may be donated, these scores must stay.
        return jax.tree.map(jnp.array, mine)

    return Criterion(
        init=init,
        update=lambda grads, state, params: state,
        score=lambda params, state, grads, key: state,
        reads_grads=False,
    )
