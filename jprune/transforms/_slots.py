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

from jprune._core.trees import is_hole, path_name, unique_names
from jprune._core.typing import Masks, Tree


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
    try:
        slots = _slots(inner.init, state, params, active)
    except Exception as error:
        raise ValueError(
            f"`{call}(inner)`: which weights {_of_weights(inner, params)} of "
            "the state belong to can't be told; `optax.tree.map_params` fails "
            f"on this optimizer with {type(error).__name__}: {error}."
        ) from error
    placed = jax.tree_util.tree_flatten_with_path(slots)[0]
    names = unique_names([path for path, _ in placed])
    found = dict(zip(names, (slot for _, slot in placed), strict=True))
    shapes = [x.shape for x in jax.tree.leaves(state)]
    for (name, slot), shape in zip(found.items(), shapes, strict=True):
        if slot.kind == "unknown":
            raise ValueError(
                f"`{call}(inner)`: no rule says which entries of the slot "
                f"{name!r}, of shape {shape}, belong to which weight, so that "
                "the moments of new connections can't be set."
            )
    return found


def _of_weights(inner: Any, params: Tree) -> str:
    """The slots whose shapes change with those of the parameters, in words."""

    def larger(p: Any) -> jax.ShapeDtypeStruct:
        shape = tuple(n + 1 for n in np.shape(p))
        return jax.ShapeDtypeStruct(shape, jnp.result_type(p))

    named = jax.tree_util.tree_flatten_with_path(
        jax.eval_shape(inner.init, params)
    )[0]
    try:
        others = jax.tree.leaves(
            jax.eval_shape(inner.init, jax.tree.map(larger, params))
        )
        moved = [
            x.shape != y.shape for (_, x), y in zip(named, others, strict=True)
        ]
    except Exception:  # parameters of other shapes are not for this one
        moved = [x.ndim > 0 for _, x in named]
    names = [
        path_name(path)
        for (path, _), move in zip(named, moved, strict=True)
        if move
    ]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"the slots {', '.join(map(repr, names[:3]))}{more}"


def _slots(init: Any, state: Any, params: Tree, active: Masks) -> Any:
    """A :class:`Slot` in place of each array of the state."""
    fixed: list[tuple[int, ...]] = []  # shapes of a state without parameters

    def start(nothing: Any) -> Any:
        state = init(nothing)
        fixed.extend(map(np.shape, jax.tree.leaves(state)))
        return state

    try:
        return optax.tree.map_params(
            start,
            lambda values: _pair(params, active, values),
            state,
            transform_non_params=lambda x: _global(fixed.pop(0), x),
            is_leaf=lambda node: True,  # a whole tree of slots at a time
        )
    except Exception:
        # Not every `init` takes a tree without leaves, as that function gives.
        slots = _slots_of_one(init, state, params, active)
        if slots is None:
            raise
        return slots


def _slots_of_one(init: Any, state: Any, params: Tree, active: Masks) -> Any:
    """The same by states of one array; None if that does not tell.

    Where the shapes of two such states differ is a tree like the parameters.
    """
    arrays = [jax.ShapeDtypeStruct(n, np.float32) for n in [(2, 3), (3, 4)]]

    def node(one: Any, two: Any, values: Tree) -> Any:
        if one.shape != two.shape:
            return _pair(params, active, values)
        return jax.tree.map(lambda x: _global(one.shape, x), values)

    try:
        one, two = (jax.eval_shape(init, array) for array in arrays)
        return jax.tree.map(node, one, two, state)
    except Exception:
        return None


def _global(shape: tuple[int, ...], value: Any) -> Slot:
    """What should have the same shape for any parameters."""
    return Slot("global" if np.shape(value) == shape else "unknown")


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
