"""N of M consecutive inputs."""

from typing import Any

import numpy as np

from jprune._core import counts as _counts
from jprune._core.calls import recorded
from jprune._core.checks import check_integer
from jprune._core.layout import (
    Axis,
    Layout,
    check_kernel_axes,
    place_kernel_axes,
)
from jprune._core.products import Products
from jprune._core.trees import path_name
from jprune.structures._base import Structure, layer_of, structure_of


@recorded
def n_m(
    n: int,
    m: int,
    *,
    in_axis: Axis | None = None,
    out_axis: Axis | None = None,
    batch_axis: Axis = (),
    axes: Products | None = None,
) -> Structure:
    """Keeps ``n`` of every ``m`` consecutive inputs, as 2:4 hardware requires.

    A unit is a weight, and a pool is ``m`` consecutive weights along the contracted
    axis. At sparsity ``s`` each pool keeps ``max(n, round(m * (1 - s)))`` of them.
    So a schedule that ends at ``1 - n / m`` or above ends at the pattern, with the
    same number in every pool on the way. A number above ``1 - n / m`` by more than
    this rounding is refused.

    With ``erdos_renyi`` the formula uses each leaf's own sparsity.
    ``global_ranking`` is refused, because its numbers would differ.

    Args:
      n: How many inputs each pool keeps at least, from 0 to ``m``. Static.
      m: The number of inputs in a pool. Static.
      in_axis: The contracted axes; several are merged in the given order. None: the
        first of two, not counting ``batch_axis``. A leaf with more axes, or called
        ``weight`` (Equinox and PyTorch store it as [out, in]), is refused.
      out_axis: Axes of outputs. None: the second of two.
      batch_axis: Axes that stack layers.
      axes: What :func:`jprune.trace_products` returned, instead of these three:
        the axes over which each leaf is really multiplied, whatever its layout.

    Returns:
      A :class:`Structure`. To find masks costs a pass of ``m`` comparisons per
      weight.

    Raises:
      ValueError: Here if ``n > m``; when used, if ``m`` does not divide a leaf's
        contracted axis, or an axis is unknown, out of range or taken twice.

    References:
      Mishra et al., `Accelerating Sparse Deep Neural Networks
      <https://arxiv.org/abs/2104.08378>`_, 2021: 2:4.
      Zhou et al., `Learning N:M Fine-grained Structured Sparse Neural Networks
      From Scratch <https://arxiv.org/abs/2102.04010>`_, 2021.

    >>> import jax.numpy as jnp, jprune
    >>> kernel = jnp.array([[1., -9.], [2., 8.], [-3., 7.], [4., 6.]])
    >>> masks = jprune.find_masks(
    ...     kernel, .5, structure=jprune.structures.n_m(2, 4))
    >>> masks.T.tolist()
    [[False, False, True, True], [True, True, False, False]]
    """
    n = check_integer("`n_m(n)`", n, static=True)
    m = check_integer("`n_m(m)`", m, 1, static=True)
    if n > m:
        raise ValueError(f"`n_m(n, m)` needs n <= m, got n={n}, m={m}.")
    placed = check_kernel_axes(
        "n_m", axes, in_axis=in_axis, out_axis=out_axis, batch_axis=batch_axis
    )

    def read(path: Any, shape: tuple[int, ...]) -> Layout:
        inner, outer, batch, window = place_kernel_axes(
            "n_m", path, shape, placed
        )
        size = int(np.prod([shape[i] for i in inner], dtype=int))
        if size % m:
            raise ValueError(
                f"`n_m({n}, {m})`: the contracted axis of {path_name(path)!r} has "
                f"{size} entries, which {m} does not divide; "
                "`where=` can leave the leaf out."
            )
        # Only the contracted axes are merged: others stay as a mesh has them.
        rest = [(i,) for i in (*batch, *window, *outer)]
        return Layout(((), inner, *rest), (m,) + (1,) * len(rest))

    def kept(sparsity: Any, sizes: np.ndarray) -> Any:
        left = _counts.fraction_of(_counts.density_of(sparsity), sizes)
        if not isinstance(left, _counts.Count):
            return np.maximum(left, n)
        least = _counts.count_of(np.full(sizes.shape, n))
        return _counts.where(_counts.less(left, least), least, left)

    return structure_of(
        read, layer=layer_of("n_m", placed), kept=kept, few_units=True
    )
