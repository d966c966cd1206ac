"""Criteria of one function."""

import inspect
from collections.abc import Callable
from typing import Any

from jprune._core.calls import recorded, short
from jprune._core.describe import describe
from jprune._core.typing import Tree
from jprune.criteria._base import Criterion, required, stateless


@recorded
def custom(fn: Callable[..., Tree], *, grads: bool = False) -> Criterion:
    """Keeps the weights that your own function scores highest.

    Args:
      fn: ``params -> scores``; with ``grads=True`` ``(params, grads) -> scores``.
        All are trees; leaves that are not pruned are ``optax.MaskedNode``.
        Scores are a floating tree like ``params``. If their signs matter, let the
        structure pool by ``"mean"`` or ``"max"``.
      grads: Whether ``fn`` gets gradients. They are then required, as for
        :func:`gradient`.

    Returns:
      A :class:`Criterion` without state. For state, or a random key, write a
      :class:`Criterion`.

    Raises:
      ValueError: ``fn`` is not a function of these arguments; when used, if
        gradients are missing.

    >>> import jax, jax.numpy as jnp, jprune
    >>> def relative(params):
    ...     return jax.tree.map(lambda w: abs(w) / abs(w).max(), params)
    >>> masks = jprune.find_masks(
    ...     [jnp.array([[1., 2.]]), jnp.array([[30., 10.]])], .5,
    ...     criterion=jprune.criteria.custom(relative),
    ...     allocation=jprune.allocations.global_ranking())
    >>> [m.tolist() for m in masks]
    [[[False, True]], [[True, False]]]
    >>> def first_order(params, grads):
    ...     return jax.tree.map(lambda w, g: abs(w * g), params, grads)
    >>> jprune.find_masks(
    ...     jnp.array([[1., 2.]]), .5, grads=jnp.array([[3., 1.]]),
    ...     criterion=jprune.criteria.custom(first_order, grads=True))
    Array([[ True, False]], dtype=bool)
    """
    if not callable(fn):
        raise ValueError(
            f"`custom(fn)` must be a function of a tree to a tree, got "
            f"{describe(fn)}."
        )
    call = "custom(fn, grads=True)" if grads else "custom(fn)"
    if not _takes(fn, 1 + grads):
        wanted = "(params, grads)" if grads else "params"
        other = "custom(fn)" if grads else "custom(fn, grads=True)"
        hint = f"; `{other}` fits it" if _takes(fn, 2 - grads) else ""
        raise ValueError(
            f"`{call}` calls `fn` with {wanted}, which `{short(fn)}` does not "
            f"take: its arguments are {_arguments(fn)}{hint}."
        )
    takes_grads = grads

    def score(params: Tree, state: Any, grads: Any, key: Any) -> Tree:
        del state, key  # write a `Criterion` for more
        if takes_grads:
            return fn(params, required(call, params, grads))
        return fn(params)

    return stateless(score, reads_grads=takes_grads)


def _takes(fn: Callable[..., Any], number: int) -> bool:
    """Whether a function can be called with so many arguments."""
    try:
        inspect.signature(fn).bind(*[None] * number)
    except TypeError:
        return False
    except ValueError:  # some functions written in C have no signature
        pass
    return True


def _arguments(fn: Callable[..., Any]) -> inspect.Signature:
    """The signature without types."""
    parameters = inspect.signature(fn).parameters.values()
    return inspect.Signature(
        [p.replace(annotation=p.empty) for p in parameters]
    )
