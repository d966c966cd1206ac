"""Outputs that share their inputs."""

from jprune._core.calls import recorded
from jprune._core.checks import check_integer
from jprune._core.layout import (
    Axis,
    check_kernel_axes,
)
from jprune._core.products import Products
from jprune.structures._base import Structure, tiles


@recorded
def group(
    size: int,
    *,
    pooling: str = "l2",
    in_axis: Axis | None = None,
    out_axis: Axis | None = None,
    batch_axis: Axis = (),
    axes: Products | None = None,
) -> Structure:
    """So many consecutive outputs share their inputs.

    A unit is one input of ``size`` outputs (a convolution's: in one place of the
    window); the last group is smaller where ``size`` does not divide the
    outputs. A leaf is a pool, so groups may keep different numbers of inputs.

    Args:
      size: Outputs in a group, at least 1. Static.
      pooling: ``"l2"``, ``"l1"``, ``"mean"`` or ``"max"``, of a unit's scores.
      in_axis: Axes of inputs. None: the first of two, beside those that stack
        layers. A leaf with more, or called ``weight`` (which Equinox and PyTorch
        hold as [out, in]), is refused.
      out_axis: Axes of outputs; several are merged in the given order. None: the
        second of two.
      batch_axis: Axes that stack layers: each index is a pool of its own.
      axes: What :func:`jprune.trace_products` returned, in place of all three: each
        leaf's axes as they are really multiplied, whatever its layout is.

    Returns:
      A :class:`Structure`; goes with every allocation.

    Raises:
      ValueError: Here for a bad ``size`` or ``pooling``; when used, if a leaf
        has fewer outputs, or an axis is unknown, out of range or taken twice.

    References:
      Narang et al., `Block-Sparse Recurrent Neural Networks
      <https://arxiv.org/abs/1711.02782>`_, 2017.

    >>> import jax.numpy as jnp, jprune
    >>> kernel = jnp.array([[1., 2., 0., 5.], [3., 3., 1., 1.]])
    >>> jprune.find_masks(kernel, .5, structure=jprune.structures.group(2))
    Array([[False, False,  True,  True],
           [ True,  True, False, False]], dtype=bool)
    """
    size = check_integer("`group(size)`", size, 1, static=True)
    placed = check_kernel_axes(
        "group", axes, in_axis=in_axis, out_axis=out_axis, batch_axis=batch_axis
    )
    return tiles(f"group({size})", placed, (size,), pooling)
