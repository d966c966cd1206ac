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
    """Boxes of weights are kept or lost whole.

    The last entry of ``shape`` is along the outputs, the one before along the
    inputs, further ones along the last axes of a convolution's window; axes for
    which there is no entry are not divided. Blocks at an edge are smaller where
    an entry does not divide its axis; pooled by a sum they then score lower.

    Args:
      shape: The sizes of a block, for example ``(32, 32)``. Static.
      pooling: ``"l2"``, ``"l1"``, ``"mean"`` or ``"max"``, of a unit's scores.
      in_axis: Axes of inputs; several are merged in the given order. None: the
        first of two, beside those that stack layers. A leaf with more, or called
        ``weight`` (which Equinox and PyTorch hold as [out, in]), is refused.
      out_axis: Axes of outputs, likewise. None: the second of two.
      batch_axis: Axes that stack layers: each index is a pool of its own.
      axes: What :func:`jprune.trace_products` returned, in place of all three: each
        leaf's axes as they are really multiplied, whatever its layout is.

    Returns:
      A :class:`Structure`; goes with every allocation.

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
