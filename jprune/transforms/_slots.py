"""What an optimizer remembers of each weight, found by path and shape.

An array in the state of an optimizer is a *slot*:

- of weights, if it has the shape of its parameter, perhaps with more axes in
  front: it has an entry for each weight;
- a statistic, if it lacks axes of its parameter or has them at size 1: what it
  holds belongs to many weights;
- global, if its shape is the same for any parameters.

Anything else is refused: its entries can't be told apart.

Which parameter is its own, its path says: optimizers map trees, so the names of
the parameter are a part of the slot's path. Where they are no names (the first
parameter of a list may be the first link of a chain), or fit none or several, the
state of larger parameters tells, each of which is larger by another number.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import DictKey, tree_flatten_with_path

from jprune._core.arrays import abstract_array
from jprune._core.trees import is_hole, unique_names
from jprune._core.typing import KeyPath, Masks, Tree

_Shape: TypeAlias = tuple[int, ...]


@dataclasses.dataclass(frozen=True)  # and no tuple: a leaf among leaves
class Slot:
    """How one array of a state belongs to the parameters."""

    kind: Literal["weights", "statistic", "global", "unknown", "unowned"]
    active: Any = None  # the mask of its weights


class _Leaf(NamedTuple):
    """A parameter."""

    shape: _Shape
    larger: _Shape  # by a number of its own
    active: Any


def reset_slots(inner: Any, state: Any, params: Tree, active: Masks) -> Any:
    """The state with fresh slots of the weights that are not active.

    Fresh is what ``inner.init`` gives to weights that are zero. Statistics and
    what is global stay.
    """
    zeros = jax.tree.map(jnp.zeros_like, params)

    def leaf(slot: Slot, value: Any, fresh: Any) -> Any:
        if slot.active is None:
            return value
        return jnp.where(slot.active, value, fresh)

    slots = _slots(inner.init, state, params, active)
    return jax.tree.map(leaf, slots, state, inner.init(zeros))


def find_slots(
    call: str, inner: Any, params: Tree, active: Masks
) -> dict[str, Slot]:
    """The slots of ``inner`` by their paths in its state.

    Raises:
      ValueError: The entries of one of them can't be told apart; it is named.
    """
    state = jax.eval_shape(inner.init, params)
    slots = jax.tree.leaves(_slots(inner.init, state, params, active))
    placed = tree_flatten_with_path(state)[0]
    names = unique_names([path for path, _ in placed])
    found = dict(zip(names, slots, strict=True))
    unowned = [name for name, slot in found.items() if slot.kind == "unowned"]
    if unowned:
        more = f" and {len(unowned) - 3} more" if len(unowned) > 3 else ""
        raise ValueError(
            f"`{call}(inner)`: which weights the slots "
            f"{', '.join(map(repr, unowned[:3]))}{more} of the state belong to "
            "can't be told; their shapes change with those of the parameters, "
            "and their paths name none."
        )
    for name, slot, (_, x) in zip(names, slots, placed, strict=True):
        if slot.kind == "unknown":
            raise ValueError(
                f"`{call}(inner)`: no rule says which entries of the slot "
                f"{name!r}, of shape {x.shape}, belong to which weight, so that "
                "the moments of new connections can't be set."
            )
    return found


def _slots(init: Any, state: Any, params: Tree, active: Masks) -> Any:
    """A :class:`Slot` in place of each array of the state."""
    leaves = _leaves(params, active)

    @functools.cache
    def shapes() -> dict[KeyPath, _Shape]:
        """Those of the state of the larger parameters."""
        form = jax.tree.structure(params)
        larger = (
            abstract_array(p, leaf.larger)
            for p, leaf in zip(
                jax.tree.leaves(params), leaves.values(), strict=True
            )
        )
        state = jax.eval_shape(init, jax.tree.unflatten(form, larger))
        return {p: np.shape(x) for p, x in tree_flatten_with_path(state)[0]}

    return jax.tree_util.tree_map_with_path(
        lambda path, x: _slot(
            leaves, path, np.shape(x), lambda: shapes().get(path, ())
        ),
        state,
    )


def _leaves(params: Tree, active: Masks) -> dict[KeyPath, _Leaf]:
    """The parameters by their paths."""
    placed = tree_flatten_with_path(params, is_leaf=is_hole)[0]
    masks = jax.tree.leaves(active, is_leaf=is_hole)
    found = {}
    for i, ((path, p), mask) in enumerate(zip(placed, masks, strict=True)):
        shape = np.shape(p)
        larger = tuple(n + 1 + i for n in shape) or (1 + i,)
        if not is_hole(p):
            found[path] = _Leaf(shape, larger, mask)
    return found


def _slot(
    leaves: dict[KeyPath, _Leaf],
    path: KeyPath,
    shape: _Shape,
    larger: Callable[[], _Shape],
) -> Slot:
    """What an array is, by its path, its shape, and that of larger parameters."""
    paths = _owners(leaves, path)
    owners = [leaves[part] for part in paths]
    named = any(isinstance(key, DictKey) for part in paths for key in part)
    if named and len(owners) == 1:
        slot = _slot_of(owners[0], shape)
        if slot.kind != "unknown":
            return slot
    scalar = not shape and all(leaf.shape for leaf in owners)
    if scalar or larger() == shape:
        return Slot("global")
    for leaf in owners or leaves.values():
        if _ends(shape, leaf.shape) and _ends(larger(), leaf.larger):
            return _slot_of(leaf, shape)
    if not owners:
        return Slot("unowned")
    kinds = {_slot_of(leaf, shape).kind for leaf in owners}
    return Slot("statistic" if kinds == {"statistic"} else "unknown")


def _owners(leaves: dict[KeyPath, _Leaf], path: KeyPath) -> list[KeyPath]:
    """The longest paths of parameters that are a part of a path."""
    for size in range(len(path), -1, -1):
        parts = (path[i : i + size] for i in range(len(path) - size + 1))
        found = dict.fromkeys(part for part in parts if part in leaves)
        if found:
            return list(found)
    return []


def _ends(shape: _Shape, end: _Shape) -> bool:
    return len(shape) >= len(end) and shape[len(shape) - len(end) :] == end


def _slot_of(leaf: _Leaf, shape: _Shape) -> Slot:
    """What an array of some shape is, if it belongs to a parameter."""
    if is_hole(leaf.active):
        return Slot("statistic")  # of a leaf that is not pruned
    if _ends(shape, leaf.shape):
        return Slot("weights", leaf.active)
    left = iter(leaf.shape)
    if all(any(n == size for n in left) for size in shape):
        return Slot("statistic")  # what is left of the axes, in order
    kept = len(shape) == len(leaf.shape) and all(
        n in (1, size) for n, size in zip(shape, leaf.shape, strict=True)
    )
    single = np.prod(shape, dtype=int) <= 1
    return Slot("statistic" if kept or single else "unknown")
