"""Masks beside parameters: by path, broadcast, of a part."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jprune._core.checks import check_bool, check_floating
from jprune._core.paths import align_part
from jprune._core.trees import (
    is_hole,
    leaves_with_path,
    path_name,
    rebuild,
)
from jprune._core.typing import Masks, Tree


def align_masks(
    call: str, params: Tree, masks: Masks
) -> list[jax.typing.ArrayLike | None]:
    """The mask of each leaf or hole of ``params``, None where there is none.

    Masks may cover a part of the parameters: see :func:`align_part`.

    Returns:
      Masks with as many axes as their parameters, or none.

    Raises:
      ValueError: A mask has no parameter, another shape or dtype, or masks a
        leaf that is not floating; the leaf is named.
    """
    aligned: list[Any] = []
    for (path, leaf), mask in zip(
        leaves_with_path(params),
        align_part(masks, params, call),
        strict=True,
    ):
        if mask is not None:
            check_floating(call, path, leaf)
            place = f"{call}: the mask of {path_name(path)!r}"
            check_bool(place, mask)
            mask = _with_axes(place, mask, np.shape(leaf))
        aligned.append(mask)
    return aligned


def _with_axes(place: str, mask: Any, wanted: tuple[int, ...]) -> Any:
    """A mask that broadcasts without a promotion of ranks."""
    shape = np.shape(mask)
    if not _broadcasts(shape, wanted):
        raise ValueError(
            f"{place} has shape {shape}, which does not broadcast to the "
            f"parameter's {wanted}."
        )
    if len(shape) in (0, len(wanted)):
        return mask
    return mask.reshape((1,) * (len(wanted) - len(shape)) + shape)


def _broadcasts(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    try:
        return np.broadcast_shapes(shape, wanted) == wanted
    except ValueError:
        return False


def full_masks(call: str, params: Tree, masks: Masks) -> Masks:
    """``masks`` as a tree that mirrors ``params``, in arrays of its own.

    Made from the parameters, so that they have their sharding.
    """
    leaves = [
        leaf if is_hole(leaf) else _full(leaf, mask)
        for (_, leaf), mask in zip(
            leaves_with_path(params),
            align_masks(call, params, masks),
            strict=True,
        )
    ]
    return rebuild(params, leaves)


def _full(leaf: Any, mask: Any) -> Any:
    if mask is None:
        return optax.MaskedNode()
    return jnp.ones_like(leaf, dtype=bool) & mask
