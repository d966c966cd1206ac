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
    """Every output keeps the same number of inputs, whichever they are.

    A unit is a weight, a pool all weights of one output: of its ``n`` inputs
    (a convolution's: in every place of the window) a sparsity ``s`` loses
    ``round(s * n)``. The kernel fits ``[outputs, inputs kept]`` without padding.

    Under ``erdos_renyi`` each leaf has a number of its own, rounded per output.
    ``global_ranking``, which promises no equal numbers, is refused.

    Args:
      in_axis: Axes of inputs. None: the first of two, beside those that stack
        layers. A leaf with more, or called ``weight`` (which Equinox and PyTorch
        hold as [out, in]), is refused.
      out_axis: Axes of outputs: each combination of their indices is one. None:
        the second of two.
      batch_axis: Axes that stack layers.
      axes: What :func:`jprune.trace_products` returned, in place of all three: each
        leaf's axes as they are really multiplied, whatever its layout is.

    Returns:
      A :class:`Structure`. Masks cost a pass per comparison of scores, with two
      keys and two counts in memory for each output.

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
