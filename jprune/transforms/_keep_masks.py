"""Fixed masks."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jprune._core.calls import recorded
from jprune._core.checks import check_params, check_state
from jprune._core.trees import is_hole, path_name, wide_dtype
from jprune._core.typing import Masks, Tree
from jprune.masks import full_masks


class KeepMasksState(NamedTuple):
    """The state of :func:`keep_masks`."""

    masks: Masks  # bool, like the parameters


@recorded
def keep_masks(masks: Masks) -> optax.GradientTransformationExtraArgs:
    r"""Holds pruned weights at exactly zero with fixed masks, for fine-tuning.

    .. math::

      u'_i = u_i \;\text{if}\; m_i \;\text{else}\; -p_i

    The last transform of a chain sees the final update :math:`u` and the
    parameters :math:`p`, and :math:`p + (-p)` is exactly 0. The update of a kept
    weight passes through unchanged, bit for bit.

    Args:
      masks: Masks for the parameters or a part of them, as for
        :func:`jprune.apply_masks`. ``init`` copies them.

    Returns:
      A transform for the end of a chain. Its state is a
      :class:`KeepMasksState`; ``update`` needs ``params``. Updates keep their
      dtype unless it can't hold the parameters' values.

    Raises:
      ValueError: In ``init``, if the masks don't fit the parameters (the leaf
        is named); in ``update``, if ``params`` or the update of a masked leaf is
        missing.

    Cost: one fused pass per step, and one byte of state per weight. Call
    ``init`` outside ``jit``: inside it the masks become constants of the program.

    >>> import jax.numpy as jnp, optax, jprune
    >>> params = jnp.array([[1., -4.], [3., -2.]])
    >>> masks = jprune.find_masks(params, .5)
    >>> tx = optax.chain(optax.sgd(.1), jprune.keep_masks(masks))
    >>> updates, state = tx.update(jnp.ones((2, 2)), tx.init(params), params)
    >>> optax.apply_updates(params, updates)
    Array([[ 0. , -4.1],
           [ 2.9,  0. ]], dtype=float32)
    """

    def init_fn(params: Tree) -> KeepMasksState:
        return KeepMasksState(full_masks("`keep_masks(masks)`", params, masks))

    def update_fn(
        updates: Tree,
        state: KeepMasksState,
        params: Tree | None = None,
        **extra_args: Any,
    ) -> tuple[Tree, KeepMasksState]:
        del extra_args  # for other links of the chain
        check_params("keep_masks", params)
        chosen = masked_leaves(params, state.masks)
        check_state("keep_masks", state.masks, chosen)
        return mask_updates("keep_masks", updates, params, state.masks), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def mask_updates(call: str, updates: Tree, params: Tree, masks: Masks) -> Tree:
    """Updates that land on zero where the masks are False.

    Raises:
      ValueError: There is no update of a leaf with a mask, so that none can land
        on zero; the leaf is named.
    """

    def leaf(path: Any, u: Any, p: Any, mask: Any) -> Any:
        if is_hole(mask):
            return u
        check_update(call, path, u)
        dtype = update_dtype(u, p)
        return jnp.where(mask, jnp.asarray(u, dtype), -jnp.asarray(p, dtype))

    return jax.tree_util.tree_map_with_path(
        leaf, updates, params, masks, is_leaf=is_hole
    )


def masked_leaves(params: Tree, masks: Masks) -> Tree:
    """The parameters that have masks, with holes elsewhere."""
    return jax.tree.map(
        lambda mask, p: mask if is_hole(mask) else p,
        masks,
        params,
        is_leaf=is_hole,
    )


def check_update(call: str, path: Any, update: Any) -> None:
    """Refuses a hole in place of the update of a selected leaf."""
    if is_hole(update):
        how = "masks" if call == "keep_masks" else "where"
        raise ValueError(
            f"`{call}`: the update of {path_name(path)!r} is {update!r}, so that "
            f"it can't be moved; exclude the leaf, by `{call}({how}=...)`."
        )


def update_dtype(u: Any, p: Any) -> Any:
    """The dtype of ``u``, or the next that holds the values of ``p`` too."""
    first, second = (np.dtype(jnp.result_type(x)) for x in (u, p))
    if first == second:
        return first
    if min(first.itemsize, second.itemsize) == 1:  # of 8 bits nothing is next
        return wide_dtype(first, second)
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(first, second)
