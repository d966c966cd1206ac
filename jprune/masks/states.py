"""Masks in the state of an optimizer."""

from collections.abc import Mapping
from typing import Any

import jax

from jprune._core.checks import check_state
from jprune._core.describe import describe
from jprune._core.trees import (
    is_bool,
    is_hole,
    unbox,
)
from jprune._core.typing import Masks


def get_masks(opt_state: Any) -> Masks:
    """Finds the masks in an optimizer state, however the optimizer is composed.

    It finds the states of ``keep_masks``, ``prune``, and any transform whose
    state is a ``NamedTuple`` with a field ``masks``. They may be inside
    ``optax.chain``, ``masked``, ``partition``, ``MultiSteps``,
    ``inject_hyperparams``, ``nnx.Optimizer``, Linen's ``TrainState`` or any other
    tree, or inside the dicts that ``nnx.state`` or a checkpoint makes of them.
    The masks of several transforms are merged: a weight is pruned if any of them
    prunes it.

    Args:
      opt_state: An optimizer state, or any tree that holds one.

    Returns:
      Masks as plain arrays, in the structure of the parameters; Flax boxes are
      removed.

    Raises:
      ValueError: No transform that prunes is found, or masks are no longer bool.

    >>> import jax.numpy as jnp, optax, jprune
    >>> tx = optax.chain(optax.sgd(.1), jprune.keep_masks(jnp.array([True, False])))
    >>> jprune.get_masks(tx.init(jnp.ones(2)))
    Array([ True, False], dtype=bool)
    """

    def is_state(node: Any) -> bool:
        return has_masks(node) or _was_state(node)

    nodes = jax.tree.leaves(opt_state, is_leaf=is_state)
    found = [
        unbox(node.masks if has_masks(node) else node["masks"])
        for node in nodes
        if is_state(node)
    ]
    if not found:
        raise ValueError(
            "`get_masks(opt_state)` found no pruner (`keep_masks`, `prune`, "
            f"`rewire`) in {describe(opt_state)}. If there is none, "
            "`jprune.read_masks(params)` makes masks of the zeros in the "
            "parameters."
        )
    for masks in found:
        check_state("get_masks(opt_state)", masks)
    merged = found[0]
    for masks in found[1:]:
        merged = _merge(merged, masks)
    return merged


def has_masks(node: Any) -> bool:
    """Whether a node of a tree is the state of a pruner."""
    return "masks" in getattr(node, "_fields", ())


def _was_state(node: Any) -> bool:
    """Whether it is one of which ``nnx.state`` or a checkpoint made a dict."""
    if not isinstance(node, Mapping) or "masks" not in node:
        return False
    leaves = jax.tree.leaves(node["masks"])
    return bool(leaves) and all(map(is_bool, leaves))


def _merge(a: Masks, b: Masks) -> Masks:
    """Both; where one of them has a hole, the other, which may be a branch."""
    if is_hole(a) or is_hole(b):
        return b if is_hole(a) else a
    if jax.tree_util.all_leaves([a]):
        return a & b
    return jax.tree.map(_merge, a, b, is_leaf=lambda node: node is not a)
