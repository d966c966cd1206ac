"""The same number of inputs for every output."""

from typing import Any

import numpy as np

from jprune._core import counts as _counts
from jprune._core.calls import recorded
from jprune._core.layout import (
    Axis,
    Layout,
    check_kernel_axes,
    place_kernel_axes,
)
from jprune._core.products import Products
from jprune.structures._base import Structure, layer_of, structure_of


@recorded
def fan_in(
    *,
    in_axis: Axis | None = None,
    out_axis: Axis | None = None,
    batch_axis: Axis = (),
    axes: Products | None = None,
) -> Structure:
    """Keeps the same number of inputs for every output, whichever they are.

    A unit is a weight, and a pool is all weights of one output. An output with
    ``n`` inputs (for a convolution, at all places of the window) loses
    ``round(s * n)`` of them at sparsity ``s``. The kernel can be stored as
    ``[outputs, inputs kept]`` without padding.

    With ``erdos_renyi`` each leaf has its own number, rounded per output.
    ``global_ranking`` is refused, because its numbers would differ.

    Args:
      in_axis: Axes of inputs. None: the first of two, not counting ``batch_axis``.
        A leaf with more axes, or called ``weight`` (Equinox and PyTorch store it as
        [out, in]), is refused.
      out_axis: Axes of outputs: each combination of their indices is an output.
        None: the second of two.
      batch_axis: Axes that stack layers.
      axes: What :func:`jprune.trace_products` returned, instead of these three:
        the axes over which each leaf is really multiplied, whatever its layout.

    Returns:
      A :class:`Structure`. To find masks costs a pass per comparison of scores,
      and the memory of two keys and two counts for each output.

    Raises:
      ValueError: When used, if an axis is unknown, out of range for a leaf, or
        taken twice.

    References:
      Lasby et al., `Dynamic Sparse Training with Structured Sparsity
      <https://arxiv.org/abs/2305.02299>`_, 2023: constant fan-in.

    >>> import jax.numpy as jnp, jprune
    >>> kernel = jnp.array([[1., 9.], [2., 8.], [3., 7.], [4., 6.]])
    >>> masks = jprune.find_masks(
    ...     kernel, .5, structure=jprune.structures.fan_in())
    >>> masks.T.tolist()
    [[False, False, True, True], [True, True, False, False]]
    """
    placed = check_kernel_axes(
        "fan_in",
        axes,
        in_axis=in_axis,
        out_axis=out_axis,
        batch_axis=batch_axis,
    )

    def read(path: Any, shape: tuple[int, ...]) -> Layout:
        inner, outer, batch, window = place_kernel_axes(
            "fan_in", path, shape, placed
        )
        units = (*window, *inner)
        return Layout(
            ((*batch, *outer), *((i,) for i in units)), (1,) * len(units)
        )

    def kept(sparsity: Any, sizes: np.ndarray) -> Any:
        return _counts.left_of(sparsity, sizes)

    return structure_of(read, layer=layer_of("fan_in", placed), kept=kept)
