"""Boxes of weights."""

from collections.abc import Sequence

from jprune._core.calls import recorded
from jprune._core.checks import check_integer
from jprune._core.layout import (
    Axis,
    check_kernel_axes,
)
from jprune._core.products import Products
from jprune.structures._base import Structure, tiles


@recorded
def block(
    shape: Sequence[int],
    *,
    pooling: str = "l2",
    in_axis: Axis | None = None,
    out_axis: Axis | None = None,
    batch_axis: Axis = (),
    axes: Products | None = None,
) -> Structure:
    """Keeps or removes rectangular blocks of weights.

    The last entry of ``shape`` is the size along the outputs, the one before it
    along the inputs, and further ones along the last axes of a convolution's
    window. An axis without an entry is not divided. If an entry does not divide
    its axis, the blocks at the edge are smaller; pooled by a sum, they score lower.

    Args:
      shape: The sizes of a block, for example ``(32, 32)``. Static.
      pooling: ``"l2"``, ``"l1"``, ``"mean"`` or ``"max"``: how the scores of a
        unit's weights are pooled.
      in_axis: Axes of inputs; several are merged in the given order. None: the
        first of two, not counting ``batch_axis``. A leaf with more axes, or called
        ``weight`` (Equinox and PyTorch store it as [out, in]), is refused.
      out_axis: Axes of outputs; several are merged in the given order. None: the
        second of two.
      batch_axis: Axes that stack layers: each index is a pool of its own.
      axes: What :func:`jprune.trace_products` returned, instead of these three:
        the axes over which each leaf is really multiplied, whatever its layout.

    Returns:
      A :class:`Structure`, for every allocation.

    Raises:
      ValueError: Here for a bad ``shape`` or ``pooling``; when used, if the block
        is larger than a leaf, or an axis is unknown, out of range or taken twice.

    References:
      Narang et al., `Block-Sparse Recurrent Neural Networks
      <https://arxiv.org/abs/1711.02782>`_, 2017 (pooled by the maximum).

    >>> import jax.numpy as jnp, jprune
    >>> kernel = jnp.array([[1., 1., 3.], [1., 1., 3.], [9., 9., 1.]])
    >>> jprune.find_masks(kernel, .5, structure=jprune.structures.block((2, 2)))
    Array([[False, False,  True],
           [False, False,  True],
           [ True,  True, False]], dtype=bool)
    """
    sizes = tuple(shape) if isinstance(shape, Sequence) else (shape,)
    if not sizes:
        raise ValueError("`block(shape)` must not be empty.")
    tile = tuple(
        check_integer("`block(shape)`", size, 1, static=True) for size in sizes
    )
    placed = check_kernel_axes(
        "block", axes, in_axis=in_axis, out_axis=out_axis, batch_axis=batch_axis
    )
    return tiles(f"block({tile})", placed, tile, pooling)
