"""What an optimizer remembers of each weight, found by shape.

An array in the state of an optimizer is a *slot*:

- of weights, if it has the shape of its parameter, perhaps with more axes in
  front: it has an entry for each weight;
- a statistic, if it lacks axes of its parameter or has them at size 1: what it
  holds belongs to many weights;
- global, if its shape is the same for any parameters.

Anything else is refused: its entries can't be told apart.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jprune._trees import is_hole, path_name
from jprune._typing import Masks, Tree


@dataclasses.dataclass(frozen=True)  # and no tuple: a leaf among leaves
class Slot:
    """How one array of a state belongs to the parameters."""

    kind: Literal["weights", "statistic", "global", "unknown"]
    active: Any = None  # the mask of its weights


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
    if not jax.tree.leaves(params):
        return {}
    state = jax.eval_shape(inner.init, params)
    rest: list[Any] = []

    def init(nothing: Any) -> Any:
        rest.append(inner.init(nothing))
        return rest[0]

    try:
        slots = _slots(init, state, params, active)
    except Exception as error:
        raise ValueError(
            f"`{call}(inner)`: which slots of the state belong to which weight "
            "can't be told; `optax.tree.map_params` fails on this optimizer "
            f"with {type(error).__name__}: {error}."
        ) from error
    named = jax.tree_util.tree_flatten_with_path(slots)[0]
    shapes = [x.shape for x in jax.tree.leaves(state)]
    fixed = [np.shape(x) for x in jax.tree.leaves(rest)]
    found = {}
    for (path, slot), shape in zip(named, shapes, strict=True):
        name = path_name(path)
        same = bool(fixed) and slot.kind == "global" and shape == fixed.pop(0)
        if slot.kind == "unknown" or (slot.kind == "global" and not same):
            raise ValueError(
                f"`{call}(inner)`: no rule says which entries of the slot "
                f"{name!r}, of shape {shape}, belong to which weight, so that "
                "the moments of new connections can't be set."
            )
        found[name] = slot
    return found


def _slots(init: Any, state: Any, params: Tree, active: Masks) -> Any:
    """A :class:`Slot` in place of each array of the state."""
    return optax.tree.map_params(
        init,
        lambda values: _pair(params, active, values),
        state,
        transform_non_params=lambda value: Slot("global"),
        is_leaf=lambda node: True,  # a whole tree of slots at a time
    )


def _pair(params: Tree, active: Masks, values: Tree) -> Any:
    """The slots of a tree like the parameters.

    It may be deeper, with several slots for a parameter, or have one hole for a
    whole branch.
    """
    if is_hole(values):
        return values
    if jax.tree_util.all_leaves([params]):
        return jax.tree.map(lambda x: _slot(params, active, x), values)
    return jax.tree.map(
        _pair, params, active, values, is_leaf=lambda node: node is not params
    )


def _slot(p: Any, active: Any, value: Any) -> Slot:
    whole, shape = np.shape(p), np.shape(value)
    if is_hole(active):
        return Slot("statistic")  # of a leaf that is not pruned
    if len(shape) >= len(whole) and shape[len(shape) - len(whole) :] == whole:
        return Slot("weights", active)
    left = iter(whole)
    if all(any(n == size for n in left) for size in shape):
        return Slot("statistic")  # what is left of the axes, in order
    kept = len(shape) == len(whole) and all(
        n in (1, size) for n, size in zip(shape, whole, strict=True)
    )
    single = np.prod(shape, dtype=int) <= 1
    return Slot("statistic" if kept or single else "unknown")
