"""Grids that weights are rounded to."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jprune._core.calls import recorded, show
from jprune._core.checks import check_integer


class Grid(NamedTuple):
    """The values that weights may have: multiples of a step, up to a largest one."""

    # Kernels [G, K, N] -> [G, K, N, 2]: the step, and the largest multiple.
    scales: Callable[[jax.Array], jax.Array]

    def __repr__(self) -> str:
        return show(self)


Grid.__module__ = "jprune.grids"  # where users find it


@recorded
def integer(bits: int, group: int | None = None) -> Grid:
    r"""Rounds weights to integers times a step, symmetric around 0, per output.

    The step of an output (or of ``group`` of its inputs) is
    :math:`\max |w| / (2^{b-1} - 1)`. So the largest weight lies on the grid, and so does
    0: a pruned weight stays exactly 0.

    Args:
      bits: Number of bits of an integer, at least 2. Static.
      group: How many inputs share a step, in the order of the contracted axes; None:
        all inputs of an output. Static.

    Returns:
      A :class:`Grid`, for :func:`jprune.one_shot`. It rounds one input after another,
      and the inputs that follow make up for the change. Parameters keep their dtype; to
      store integers, use a quantization library.

    Raises:
      ValueError: ``bits`` is below 2, or ``group`` is not a positive integer.

    References:
      Frantar et al., `GPTQ <https://arxiv.org/abs/2210.17323>`_, 2022; together with
      pruning: Frantar and Alistarh, `SparseGPT <https://arxiv.org/abs/2301.00774>`_,
      2023, section 3.5.

    >>> import jax.numpy as jnp, jprune
    >>> grid = jprune.grids.integer(3)  # multiples from -3 to 3
    >>> step, most = grid.scales(jnp.array([[[.5], [-1.5]]]))[0, 0, 0]
    >>> float(step), float(most)
    (0.5, 3.0)
    """
    check_integer("`integer(bits)`", bits, 2, static=True)
    if group is not None:
        check_integer("`integer(group)`", group, 1, static=True)
    most = 2 ** (bits - 1) - 1

    def scales(kernel: jax.Array) -> jax.Array:
        products, rows, columns = kernel.shape
        size = rows if group is None else min(group, rows)
        more = -rows % size
        padded = jnp.pad(jnp.abs(kernel), ((0, 0), (0, more), (0, 0)))
        blocks = padded.reshape(products, -1, size, columns)
        step = jnp.max(blocks, 2, keepdims=True) / most
        step = jnp.where(step > 0, step, 1.0)
        step = jnp.broadcast_to(step, blocks.shape).reshape(padded.shape)
        step = step[:, :rows]
        return jnp.stack([step, jnp.full_like(step, most)], -1)

    return Grid(scales)
