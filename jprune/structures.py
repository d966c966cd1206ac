"""Structures: in what shape. Units are what is kept or lost together."""

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jprune._trees import path_name
from jprune._typing import Masks, Tree, Where

__all__ = ["Structure", "unstructured"]


class Structure(NamedTuple):
    """How weights form units, and units pools.

    Scores of units have the shape ``[pools, ...]``: axis 0 indexes pools, each
    with a count of its own; the other axes are units.
    """

    to_units: Callable[[Tree], Tree]  # scores of weights -> scores of units
    to_masks: Callable[[Masks, Tree], Masks]  # masks of units, params -> masks
    where: Where = None  # the leaves it needs, whatever the caller selects
    round_to: int = (
        0  # pools keep a positive multiple of it, or all; 0: any number
    )


def _batch_axes(
    call: str, batch_axis: int | Sequence[int], path: Any, ndim: int
) -> tuple[int, ...]:
    """The batch axes of one leaf, counted from the front."""
    axes = batch_axis if isinstance(batch_axis, Sequence) else (batch_axis,)
    for axis in axes:
        if not -ndim <= axis < ndim:
            raise ValueError(
                f"`{call}(batch_axis=...)`: axis {axis} is out of range for "
                f"{path_name(path)!r} with {ndim} axes."
            )
    return tuple(operator.index(axis) % ndim for axis in axes)


def unstructured(*, batch_axis: int | Sequence[int] = ()) -> Structure:
    """Every weight is a unit, every leaf a pool.

    Args:
      batch_axis: Axes along which a leaf holds separate layers (a scan's stack
        of layers, say): each index is a pool of its own. Static; as in
        ``jax.nn.initializers``.

    Returns:
      A :class:`Structure`.

    Raises:
      ValueError: When used, if an axis is out of range for a leaf.

    >>> import jax.numpy as jnp, jprune
    >>> stacked = jnp.array([[[1., 2.]], [[30., 40.]]])
    >>> jprune.find_masks(
    ...     stacked, .5, structure=jprune.structures.unstructured(batch_axis=0))
    Array([[[False,  True]],
    <BLANKLINE>
           [[False,  True]]], dtype=bool)
    """

    def to_units(scores: Tree) -> Tree:
        def leaf(path: Any, x: jax.Array) -> jax.Array:
            axes = _batch_axes("unstructured", batch_axis, path, x.ndim)
            x = jnp.moveaxis(x, axes, range(len(axes)))
            if len(axes) == 1:
                return x
            return x.reshape((-1, *x.shape[len(axes) :])) if axes else x[None]

        return jax.tree_util.tree_map_with_path(leaf, scores)

    def to_masks(units: Masks, params: Tree) -> Masks:
        def leaf(path: Any, p: jax.Array, mask: jax.Array) -> jax.Array:
            axes = _batch_axes("unstructured", batch_axis, path, jnp.ndim(p))
            shape = tuple(jnp.shape(p)[axis] for axis in axes)
            if len(axes) != 1:
                mask = mask.reshape(shape + mask.shape[1:]) if axes else mask[0]
            return jnp.moveaxis(mask, range(len(axes)), axes)

        return jax.tree_util.tree_map_with_path(leaf, params, units)

    return Structure(to_units, to_masks)
