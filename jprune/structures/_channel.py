"""Whole channels of a leaf."""

from typing import Any

from jprune._core.calls import recorded
from jprune._core.layout import (
    Axis,
    Layout,
    check_axes,
    place_axes,
)
from jprune.structures._base import Structure, structure_of
from jprune.structures.pooling import check_pooling


@recorded
def channel(
    axis: Axis = -1, *, pooling: str = "l2", batch_axis: Axis = ()
) -> Structure:
    """Keeps or removes whole slices along an axis: outputs, inputs or heads.

    Biases and the layers that follow do not change: an output that is removed
    still has its bias.

    Args:
      axis: The axis whose indices are the units. For several axes, each
        combination of indices is a unit.
      pooling: ``"l2"``, ``"l1"``, ``"mean"`` or ``"max"``: how the scores of a
        unit's weights are pooled.
      batch_axis: Axes that stack layers: each index is a pool of its own.

    Returns:
      A :class:`Structure`, for every allocation.

    Raises:
      ValueError: Here for an unknown ``pooling``; when used, if an axis is out of
        range or taken twice.

    References:
      Li et al., `Pruning Filters for Efficient ConvNets
      <https://arxiv.org/abs/1608.08710>`_, 2016 (pooled by L1).

    >>> import jax.numpy as jnp, jprune
    >>> kernel = jnp.array([[1., 2., 3.], [1., 0., 0.]])
    >>> jprune.find_masks(kernel, 1 / 3, structure=jprune.structures.channel())
    Array([[False,  True,  True],
           [False,  True,  True]], dtype=bool)
    """
    check_pooling("channel", pooling)
    axes = check_axes("channel", axis=axis, batch_axis=batch_axis)

    def read(path: Any, shape: tuple[int, ...]) -> Layout:
        own, batch, rest = place_axes("channel", path, len(shape), axes)
        others = sorted((*own, *rest))  # as they lie: nothing is transposed
        tiles = (1 if i in own else max(shape[i], 1) for i in others)
        return Layout((batch, *((i,) for i in others)), tuple(tiles))

    return structure_of(read, pooling, batch_axis=batch_axis)
