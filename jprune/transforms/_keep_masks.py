"""Fixed masks."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jprune._calls import recorded
from jprune._checks import check_params, check_state
from jprune._trees import is_hole
from jprune._typing import Masks, Tree
from jprune.masks import full_masks


class KeepMasksState(NamedTuple):
    """The state of :func:`keep_masks`."""

    masks: Masks  # bool, like the parameters


@recorded
def keep_masks(masks: Masks) -> optax.GradientTransformationExtraArgs:
    r"""Holds pruned weights at exactly zero: fixed masks, for fine-tuning.

    .. math::

      u'_i = u_i \;\text{if}\; m_i \;\text{else}\; -p_i

    The last transform of a chain sees the final update :math:`u` and the
    parameters :math:`p`, and :math:`p + (-p)` is exactly 0. The update of a kept
    weight passes bit for bit.

    Args:
      masks: Masks for the parameters or a part of them, as for
        :func:`jprune.apply_masks`. They are copied by ``init``.

    Returns:
      A transform for the end of a chain. Its state is a
      :class:`KeepMasksState`; ``update`` needs ``params``. Updates keep their
      dtype unless it can't hold the parameters' values.

    Raises:
      ValueError: In ``init``, if the masks don't fit the parameters (the leaf
        is named); in ``update``, if ``params`` is missing.

    Cost: one fused pass; one byte per weight of state. A program that calls
    ``init`` inside ``jit`` holds the masks as constants: call it outside.

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
        check_state("keep_masks", state.masks)
        return mask_updates(updates, params, state.masks), state

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def mask_updates(updates: Tree, params: Tree, masks: Masks) -> Tree:
    """Updates that land on zero where the masks are False."""

    def leaf(u: Any, p: Any, mask: Any) -> Any:
        if is_hole(u) or is_hole(mask):
            return u
        dtype = update_dtype(u, p)
        return jnp.where(mask, jnp.asarray(u, dtype), -jnp.asarray(p, dtype))

    return jax.tree.map(leaf, updates, params, masks, is_leaf=is_hole)


def update_dtype(u: Any, p: Any) -> Any:
    """The dtype of ``u``, or the next that holds the values of ``p`` too."""
    return jnp.promote_types(jnp.result_type(u), jnp.result_type(p))
