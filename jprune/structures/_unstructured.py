"""Single weights."""

from typing import Any

from jprune._core.calls import recorded
from jprune._core.layout import (
    Axis,
    Layout,
    check_axes,
    place_axes,
)
from jprune.structures._base import Structure, structure_of


@recorded
def unstructured(*, batch_axis: Axis = ()) -> Structure:
    """Keeps or removes single weights, ranked within each leaf.

    Args:
      batch_axis: Axes along which a leaf stacks separate layers, as a scan does:
        each index is a pool of its own. Static; as in ``jax.nn.initializers``.

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
    axes = check_axes("unstructured", batch_axis=batch_axis)

    def read(path: Any, shape: tuple[int, ...]) -> Layout:
        batch, rest = place_axes("unstructured", path, len(shape), axes)
        return Layout((batch, *((i,) for i in rest)), (1,) * len(rest))

    return structure_of(read, batch_axis=batch_axis)
