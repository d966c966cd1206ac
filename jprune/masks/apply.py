"""Masked parameters."""

from jprune._core.trees import (
    kept_only,
    leaves_with_path,
    rebuild,
)
from jprune._core.typing import Masks, Tree
from jprune.masks.align import align_masks


def apply_masks(params: Tree, masks: Masks) -> Tree:
    """Sets the pruned weights to zero.

    It selects and does not multiply: a pruned weight becomes 0 even if it was
    NaN or infinite, and a kept weight keeps its bits.

    Args:
      params: A tree of parameters, boxed or not.
      masks: Masks for it: bool arrays that have the parameters' shapes or
        broadcast to them; ``None`` or ``optax.MaskedNode`` where nothing is
        pruned. They are matched by path, and may leave out parameters or cover
        a single branch: masks of ``variables["params"]`` work for ``variables``.

    Returns:
      A tree like ``params``, with the same shapes and dtypes.

    Raises:
      ValueError: A mask fits no parameter, or masks fit several branches; the
        leaf is named.

    >>> import jax.numpy as jnp, jprune
    >>> jprune.apply_masks(
    ...     {"kernel": jnp.array([1., jnp.nan])},
    ...     {"kernel": jnp.array([True, False])})
    {'kernel': Array([1., 0.], dtype=float32)}
    """
    aligned = align_masks("`apply_masks(params, masks)`", params, masks)
    leaves = [
        leaf if mask is None else kept_only(mask, leaf)
        for (_, leaf), mask in zip(
            leaves_with_path(params), aligned, strict=True
        )
    ]
    return rebuild(params, leaves)
