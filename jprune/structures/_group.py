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
    """Keeps the same inputs for each group of ``size`` consecutive outputs.

    A unit is one input of ``size`` outputs (for a convolution, at one place of the
    window). The last group is smaller if ``size`` does not divide the number of
    outputs. A leaf is a pool, so groups may keep different numbers of inputs.

    Args:
      size: Number of outputs in a group, at least 1. Static.
      pooling: ``"l2"``, ``"l1"``, ``"mean"`` or ``"max"``: how the scores of a
        unit's weights are pooled.
      in_axis: Axes of inputs. None: the first of two, not counting ``batch_axis``.
        A leaf with more axes, or called ``weight`` (Equinox and PyTorch store it as
        [out, in]), is refused.
      out_axis: Axes of outputs; several are merged in the given order. None: the
        second of two.
      batch_axis: Axes that stack layers: each index is a pool of its own.
      axes: What :func:`jprune.trace_products` returned, instead of these three:
        the axes over which each leaf is really multiplied, whatever its layout.

    Returns:
      A :class:`Structure`, for every allocation.

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
