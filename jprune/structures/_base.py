"""What a structure is, and how axes make one."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jprune._core.calls import show
from jprune._core.costs import Polynomial
from jprune._core.layout import (
    Axes,
    Axis,
    Layout,
    join_axes,
    place_kernel_axes,
    rearrange,
    split_axes,
    units_spec,
)
from jprune._core.members import Members as Members
from jprune._core.trees import map_with_path, path_name
from jprune._core.typing import Masks, Tree, Where
from jprune.structures.pooling import POOLINGS, check_pooling, of_weights

Names: TypeAlias = tuple[tuple[str, ...], ...]
"""What each pool may be called: of units ``path[axis]``, for all their axes."""


class First(NamedTuple):
    """Pools as they were in the model that a sparsity is a fraction of."""

    sizes: np.ndarray  # int64, of the structure's pools
    others: np.ndarray  # int64, of pools of which nothing more can go
    stay: int  # units that are left in those


class Structure(NamedTuple):
    """Defines how weights form units, and how units form pools.

    Scores of units have the shape ``[pools, ...]``: axis 0 indexes pools, each
    with a count of its own, and the other axes index units. With ``few_units`` the
    shape is ``[..., units]``: each pool has few units, along the last axis.
    """

    to_units: Callable[[Tree], Tree]  # scores of weights -> scores of units
    to_masks: Callable[[Masks, Tree], Masks]  # masks of units, params -> masks
    batch_axis: Axis = ()  # axes that stack layers
    # Where all pools of a leaf keep equally many units, how many that is:
    # (sparsity of the leaf, int64 sizes of pools) -> counts. A number is refused
    # of which it makes another by more than rounding.
    kept: Callable[[Any, np.ndarray], Any] | None = None
    few_units: bool = False
    where: Where = None  # the leaves it needs, whatever the caller selects
    # Pools keep a positive multiple of it, or all; 0: any number.
    round_to: int = 0
    # In one ranking: int64 sizes of pools -> units that each keeps in any case.
    least: Callable[[np.ndarray], np.ndarray] | None = None
    names: Names | None = None  # of pools, where they are not parts of one leaf
    of: First | None = None  # the model that a sparsity is a fraction of
    # Where a sparsity is one of costs: kept units of every pool, int32 -> the
    # fraction of the cost that is left.
    cost: Callable[[jax.Array], jax.Array] | None = None
    # Of units that span leaves: the name of a cost -> what they cost.
    costs: Callable[[str], Polynomial] | None = None
    pooling: str | None = None  # its name: norms lose the signs of scores
    moves: bool = False  # whether units are weights, and only moved: bools too
    # Where it knows which axes are which: (path, shape) of a leaf -> the sizes of
    # (*window, inputs, outputs) of one layer.
    layer: Callable[[Any, tuple[int, ...]], tuple[int, ...]] | None = None
    members: Members | None = None  # of units that span leaves

    def __repr__(self) -> str:
        return show(self)


Structure.__module__ = "jprune.structures"  # where users find it


Read = Callable[[Any, tuple[int, ...]], Layout]


def structure_of(
    read: Read,
    pooling: str | None = None,
    *,
    few_units: bool = False,
    **fields: Any,
) -> Structure:
    """A structure from a function that reads the path and shape of a leaf.

    Without ``pooling`` a unit is one weight; where ``few_units``, the weights of a tile
    are a pool.
    """

    def to_units(scores: Tree) -> Tree:
        def leaf(path: Any, x: jax.Array) -> jax.Array:
            layout = read(path, x.shape)
            if layout.plain:
                return jnp.transpose(x, layout.order)[None]

            def units(x: jax.Array) -> jax.Array:
                if pooling is not None:
                    return POOLINGS[pooling](x, layout)
                x = split_axes(x, layout)
                x = jnp.transpose(x, weights_last(layout))
                shape = x.shape[: len(layout.groups)]
                return x.reshape(
                    *shape, *([math.prod(layout.tiles)] * few_units)
                )

            mesh = jax.typeof(x).sharding.mesh
            return rearrange(units, x, mesh, units_spec(x, layout))

        return map_with_path(leaf, scores)

    def to_masks(units: Masks, params: Tree) -> Masks:
        def leaf(path: Any, p: jax.Array, mask: jax.Array) -> jax.Array:
            layout = read(path, jnp.shape(p))
            if layout.plain:
                return jnp.transpose(mask[0], layout.inverse)

            def weights(mask: jax.Array) -> jax.Array:
                shape = mask.shape[: len(layout.groups)]
                own = layout.tiles if pooling is None else [1] * len(shape[1:])
                order = np.argsort(weights_last(layout)).tolist()
                mask = jnp.transpose(mask.reshape(*shape, *own), order)
                pairs = zip(shape[1:], layout.tiles, strict=True)
                whole = (shape[0], *(n for pair in pairs for n in pair))
                mask = jnp.broadcast_to(mask, whole)
                return join_axes(mask, layout, jnp.shape(p))

            sharding = jax.typeof(p).sharding
            return rearrange(weights, mask, sharding.mesh, sharding.spec)

        return map_with_path(leaf, params, units)

    return Structure(
        to_units,
        to_masks,
        few_units=few_units,
        pooling=pooling,
        moves=pooling is None,
        **fields,
    )


def weights_last(layout: Layout) -> tuple[int, ...]:
    """The axes of :func:`~jprune._core.layout.split_axes`, those of units before those of weights."""
    return 0, *range(1, 2 * len(layout.tiles), 2), *of_weights(layout)


def layer_of(
    call: str, axes: Axes
) -> Callable[[Any, tuple[int, ...]], tuple[int, ...]]:
    """The sizes of ``(*window, in, out)`` of one layer of a leaf."""

    def layer(path: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
        inner, outer, _, window = place_kernel_axes(call, path, shape, axes)
        groups = (*((i,) for i in window), inner, outer)
        return tuple(math.prod(shape[i] for i in group) for group in groups)

    return layer


def tiles(
    call: str, axes: Axes, tile: tuple[int, ...], pooling: str
) -> Structure:
    """Units are boxes in ``(*window, in, out)``, of which ``tile`` has the last."""
    name = call.partition("(")[0]
    check_pooling(name, pooling)
    layer = layer_of(name, axes)

    def read(path: Any, shape: tuple[int, ...]) -> Layout:
        inner, outer, batch, window = place_kernel_axes(name, path, shape, axes)
        groups = [*((i,) for i in window), inner, outer]
        sizes = layer(path, shape)
        own = sizes[-len(tile) :] if len(tile) <= len(sizes) else ()
        large = any(t > size for t, size in zip(tile, own, strict=False))
        if not own or (large and 0 not in shape):  # nothing fits anywhere
            raise ValueError(
                f"`{call}` does not fit into {path_name(path)!r}, whose window, "
                f"in and out axes have the sizes {sizes}; `where=` can "
                "leave the leaf out."
            )
        rest = len(sizes) - len(tile)
        return Layout((batch, *groups), (1,) * rest + tile)

    return structure_of(read, pooling, layer=layer)
