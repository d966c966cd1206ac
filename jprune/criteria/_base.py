"""What a criterion is."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jprune._core.calls import show
from jprune._core.members import Members
from jprune._core.trees import at_least_float32, wide_dtype
from jprune._core.typing import Tree


class Criterion(NamedTuple):
    """Scores weights; those with the highest scores are kept.

    All trees are like the parameters, with ``optax.MaskedNode`` where nothing is
    pruned. ``grads`` and ``key`` may be None.
    """

    init: Callable[[Tree], Any]  # params -> state
    update: Callable[[Tree, Any, Tree], Any]  # grads, state, params -> state
    score: Callable[..., Tree]  # params, state, grads, key -> scores
    # Scores of units, as a structure pools them -> those that are ranked; None:
    # as they are.
    pooled: Callable[[Tree], Tree] | None = None
    # Whether gradients are read; others' `grad=` is of no concern if not.
    reads_grads: bool = True
    # Whether the signs of scores count, also where a structure pools by a norm:
    # then by that of the positive ones less that of the negative ones.
    signed: bool = False
    # Where units span leaves, their scores: (params, state, members) -> one array
    # for each pool. None: what a structure makes of the scores of all that belongs
    # to a unit.
    of_units: Callable[[Tree, Any, Members], list[jax.Array]] | None = None
    # Whether scores lose nothing in the parameters' own precision, as |w|: there
    # weights are ranked in it, and scores take half of the memory.
    exact: bool = False

    def __repr__(self) -> str:
        return show(self)


Criterion.__module__ = "jprune.criteria"  # where users find it


def stateless(score: Callable[..., Tree], reads_grads: bool) -> Criterion:
    """A criterion that remembers nothing."""
    return Criterion(
        init=lambda params: (),
        update=lambda grads, state, params: (),
        score=score,
        reads_grads=reads_grads,
    )


def required(call: str, params: Tree, grads: Tree | None) -> Tree:
    """Refuses missing gradients."""
    if grads is None and not jax.tree.leaves(params):
        return params  # a part of `optax.partition` that got nothing
    if grads is None:
        raise ValueError(
            f"`{call}` needs gradients: `find_masks(..., grads=grads)`, or in "
            "training `jprune.with_gradients(optax.chain(...))` or "
            "`tx.update(..., grad=grads)`; got None."
        )
    return grads


def product(w: Any, g: Any) -> jax.Array:
    """``w * g`` in float32 at least."""
    dtype = wide_dtype(*map(jnp.result_type, (w, g)))
    return jnp.asarray(w, dtype) * jnp.asarray(g, dtype)


def accumulated(call: str, step: Callable[[jax.Array], jax.Array]) -> Criterion:
    """Scores that grow by ``step(w * g)`` at every update."""

    def init(params: Tree) -> Tree:
        return jax.tree.map(
            lambda p: jnp.zeros_like(at_least_float32(p)), params
        )

    def update(grads: Tree | None, state: Tree, params: Tree) -> Tree:
        return jax.tree.map(
            lambda s, w, g: s + step(product(w, g)).astype(s.dtype),
            state,
            params,
            required(call, params, grads),
        )

    def score(params: Tree, state: Tree, grads: Any, key: Any) -> Tree:
        del params, grads, key  # the state says it all
        return state

    return Criterion(init, update, score)
