"""Structures: in what shape. Units are what is kept or lost together.

Axes are named as in ``jax.nn.initializers``: ``in_axis`` is contracted,
``out_axis`` makes outputs, ``batch_axis`` holds layers that are stacked (a
scan's, say), and what is left is a convolution's window. Each is an int or a
sequence of ints; several are read as one merged axis, in the given order.

The score of a unit is pooled from its weights' by ``pooling``: ``"l2"``
(:math:`\\sqrt{\\sum s^2}`, the default), ``"l1"`` (:math:`\\sum |s|`), ``"mean"``
or ``"max"`` (of the scores as they are, which may be negative). Of criteria whose
signs count, ``movement()`` for one, the first two are the norm of the positive
scores less that of the negative ones.
"""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jprune import _counts
from jprune._calls import recorded, show
from jprune._describe import describe
from jprune._layout import (
    Axis,
    Layout,
    check_axes,
    join,
    place_axes,
    rearrange,
    split,
    units_spec,
)
from jprune._pooling import POOLINGS, check_pooling, of_weights
from jprune._trees import path_name
from jprune._typing import Masks, Tree, Where

__all__ = [
    "Structure",
    "block",
    "channel",
    "fan_in",
    "group",
    "n_m",
    "unstructured",
]


class Structure(NamedTuple):
    """How weights form units, and units pools.

    Scores of units have the shape ``[pools, ...]``: axis 0 indexes pools, each
    with a count of its own; the other axes are units. Where ``few``, it is
    ``[..., units]``: pools of few units, which lie along the last axis.
    """

    to_units: Callable[[Tree], Tree]  # scores of weights -> scores of units
    to_masks: Callable[[Masks, Tree], Masks]  # masks of units, params -> masks
    batch_axis: Axis = ()  # axes that stack layers
    # Where all pools of a leaf keep equally many units, how many that is:
    # (sparsity of the leaf, int64 sizes of pools) -> counts. A number is refused
    # of which it makes another by more than rounding.
    kept: Callable[[Any, np.ndarray], Any] | None = None
    few: bool = False
    where: Where = None  # the leaves it needs, whatever the caller selects
    # Pools keep a positive multiple of it, or all; 0: any number.
    round_to: int = 0
    # Where a sparsity is one of costs: kept units of every pool, int32 -> the
    # fraction of the cost that is left.
    cost: Callable[[jax.Array], jax.Array] | None = None
    pooling: str | None = None  # its name: norms lose the signs of scores
    moves: bool = False  # whether units are weights, and only moved: bools too

    def __repr__(self) -> str:
        return show(self)


_Read = Callable[[Any, tuple[int, ...]], Layout]


def _structure(
    read: _Read,
    pooling: str | None = None,
    *,
    few: bool = False,
    **fields: Any,
) -> Structure:
    """A structure from a function that reads the path and shape of a leaf.

    Without ``pooling`` a unit is one weight; where ``few``, the weights of a tile
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
                x = split(x, layout)
                x = jnp.transpose(x, _weights_last(layout))
                shape = x.shape[: len(layout.groups)]
                return x.reshape(*shape, *([math.prod(layout.tiles)] * few))

            mesh = jax.typeof(x).sharding.mesh
            return rearrange(units, x, mesh, units_spec(x, layout))

        return jax.tree_util.tree_map_with_path(leaf, scores)

    def to_masks(units: Masks, params: Tree) -> Masks:
        def leaf(path: Any, p: jax.Array, mask: jax.Array) -> jax.Array:
            layout = read(path, jnp.shape(p))
            if layout.plain:
                return jnp.transpose(mask[0], layout.inverse)

            def weights(mask: jax.Array) -> jax.Array:
                shape = mask.shape[: len(layout.groups)]
                own = layout.tiles if pooling is None else [1] * len(shape[1:])
                order = np.argsort(_weights_last(layout)).tolist()
                mask = jnp.transpose(mask.reshape(*shape, *own), order)
                pairs = zip(shape[1:], layout.tiles, strict=True)
                whole = (shape[0], *(n for pair in pairs for n in pair))
                mask = jnp.broadcast_to(mask, whole)
                return join(mask, layout, jnp.shape(p))

            sharding = jax.typeof(p).sharding
            return rearrange(weights, mask, sharding.mesh, sharding.spec)

        return jax.tree_util.tree_map_with_path(leaf, params, units)

    return Structure(
        to_units,
        to_masks,
        few=few,
        pooling=pooling,
        moves=pooling is None,
        **fields,
    )


def _weights_last(layout: Layout) -> tuple[int, ...]:
    """The axes of :func:`split`, those of units before those of weights."""
    return 0, *range(1, 2 * len(layout.tiles), 2), *of_weights(layout)


def _check_size(call: str, name: str, size: Any, least: int = 1) -> int:
    try:
        number = operator.index(size)
    except TypeError:
        number = least - 1
    if number < least or isinstance(size, bool):
        raise ValueError(
            f"`{call}({name})` must be an integer >= {least}, got "
            f"{describe(size)}."
        )
    return number


@recorded
def unstructured(*, batch_axis: Axis = ()) -> Structure:
    """Every weight is a unit, every leaf a pool.

    Args:
      batch_axis: Axes along which a leaf holds separate layers (a scan's stack
        of layers, say): each index is a pool of its own. Static; as in
        ``jax.nn.initializers``.

    Returns:
      A :class:`Structure`.

    Raises:
      ValueError: When used, if an axis is out of range for a leaf.

    >>> import jax.numpy as jnp, jprune
    >>> stacked = jnp.array([[[1., 2.]], [[30., 40.]]])
    >>> jprune.find_masks(
    ...     stacked, .5, structure=jprune.structures.unstructured(batch_axis=0))
    Array([[[False,  True]],
    <BLANKLINE>
           [[False,  True]]], dtype=bool)
    """
    axes = check_axes("unstructured", batch_axis=batch_axis)

    def read(path: Any, shape: tuple[int, ...]) -> Layout:
        batch, rest = place_axes("unstructured", path, len(shape), axes)
        return Layout((batch, *((i,) for i in rest)), (1,) * len(rest))

    return _structure(read, batch_axis=batch_axis)


@recorded
def fan_in(
    *, in_axis: Axis = -2, out_axis: Axis = -1, batch_axis: Axis = ()
) -> Structure:
    """Every output keeps the same number of inputs, whichever they are.

    A unit is a weight, a pool all weights of one output: of its ``n`` inputs
    (a convolution's: in every place of the window) a sparsity ``s`` loses
    ``round(s * n)``. The kernel fits ``[outputs, inputs kept]`` without padding.

    Under ``erdos_renyi`` each leaf has a number of its own, rounded per output.
    ``global_ranking``, which promises no equal numbers, is refused.

    Args:
      in_axis: Axes of inputs.
      out_axis: Axes of outputs: each combination of their indices is one.
      batch_axis: Axes that stack layers.

    Returns:
      A :class:`Structure`. Masks cost a pass per comparison of scores, with two
      keys and two counts in memory for each output.

    Raises:
      ValueError: When used, if an axis is out of range for a leaf, or taken
        twice.

    References:
      Lasby et al., `Dynamic Sparse Training with Structured Sparsity
      <https://arxiv.org/abs/2305.02299>`_, 2023: constant fan-in.

    >>> import jax.numpy as jnp, jprune
    >>> kernel = jnp.array([[1., 9.], [2., 8.], [3., 7.], [4., 6.]])
    >>> masks = jprune.find_masks(
    ...     kernel, .5, structure=jprune.structures.fan_in())
    >>> masks.T.tolist()
    [[False, False, True, True], [True, True, False, False]]
    """
    axes = check_axes(
        "fan_in", in_axis=in_axis, out_axis=out_axis, batch_axis=batch_axis
    )

    def read(path: Any, shape: tuple[int, ...]) -> Layout:
        inner, outer, batch, window = place_axes(
            "fan_in", path, len(shape), axes
        )
        units = (*window, *inner)
        return Layout(
            ((*batch, *outer), *((i,) for i in units)), (1,) * len(units)
        )

    def kept(sparsity: Any, sizes: np.ndarray) -> Any:
        return _counts.left_of(sparsity, sizes)

    return _structure(read, batch_axis=batch_axis, kept=kept)


def _tiles(
    call: str,
    axes: dict[str, tuple[int, ...]],
    tile: tuple[int, ...],
    pooling: str,
    batch_axis: Axis,
) -> Structure:
    """Units are boxes in ``(*window, in, out)``, of which ``tile`` has the last."""
    check_pooling(call.partition("(")[0], pooling)

    def read(path: Any, shape: tuple[int, ...]) -> Layout:
        name = call.partition("(")[0]
        inner, outer, batch, window = place_axes(name, path, len(shape), axes)
        groups = [*((i,) for i in window), inner, outer]
        sizes = [int(np.prod([shape[i] for i in g], dtype=int)) for g in groups]
        own = sizes[-len(tile) :] if len(tile) <= len(sizes) else ()
        large = any(t > size for t, size in zip(tile, own, strict=False))
        if not own or (large and 0 not in shape):  # nothing fits anywhere
            raise ValueError(
                f"`{call}` does not fit into {path_name(path)!r}, whose window, "
                f"in and out axes have the sizes {tuple(sizes)}; `where=` can "
                "leave the leaf out."
            )
        rest = len(sizes) - len(tile)
        return Layout((batch, *groups), (1,) * rest + tile)

    return _structure(read, pooling, batch_axis=batch_axis)


@recorded
def group(
    size: int,
    *,
    pooling: str = "l2",
    in_axis: Axis = -2,
    out_axis: Axis = -1,
    batch_axis: Axis = (),
) -> Structure:
    """So many consecutive outputs share their inputs.

    A unit is one input of ``size`` outputs (a convolution's: in one place of the
    window); the last group is smaller where ``size`` does not divide the
    outputs. A leaf is a pool, so groups may keep different numbers of inputs.

    Args:
      size: Outputs in a group, at least 1. Static.
      pooling: ``"l2"``, ``"l1"``, ``"mean"`` or ``"max"``, of a unit's scores.
      in_axis: Axes of inputs.
      out_axis: Axes of outputs; several are merged in the given order.
      batch_axis: Axes that stack layers: each index is a pool of its own.

    Returns:
      A :class:`Structure`; goes with every allocation.

    Raises:
      ValueError: Here for a bad ``size`` or ``pooling``; when used, if a leaf
        has fewer outputs, or an axis is out of range or taken twice.

    References:
      Narang et al., `Block-Sparse Recurrent Neural Networks
      <https://arxiv.org/abs/1711.02782>`_, 2017.

    >>> import jax.numpy as jnp, jprune
    >>> kernel = jnp.array([[1., 2., 0., 5.], [3., 3., 1., 1.]])
    >>> jprune.find_masks(kernel, .5, structure=jprune.structures.group(2))
    Array([[False, False,  True,  True],
           [ True,  True, False, False]], dtype=bool)
    """
    size = _check_size("group", "size", size)
    axes = check_axes(
        "group", in_axis=in_axis, out_axis=out_axis, batch_axis=batch_axis
    )
    return _tiles(f"group({size})", axes, (size,), pooling, batch_axis)


@recorded
def block(
    shape: Sequence[int],
    *,
    pooling: str = "l2",
    in_axis: Axis = -2,
    out_axis: Axis = -1,
    batch_axis: Axis = (),
) -> Structure:
    """Boxes of weights are kept or lost whole.

    The last entry of ``shape`` is along the outputs, the one before along the
    inputs, further ones along the last axes of a convolution's window; axes for
    which there is no entry are not divided. Blocks at an edge are smaller where
    an entry does not divide its axis; pooled by a sum they then score lower.

    Args:
      shape: The sizes of a block, for example ``(32, 32)``. Static.
      pooling: ``"l2"``, ``"l1"``, ``"mean"`` or ``"max"``, of a unit's scores.
      in_axis: Axes of inputs; several are merged in the given order.
      out_axis: Axes of outputs, likewise.
      batch_axis: Axes that stack layers: each index is a pool of its own.

    Returns:
      A :class:`Structure`; goes with every allocation.

    Raises:
      ValueError: Here for a bad ``shape`` or ``pooling``; when used, if the block
        is larger than a leaf, or an axis is out of range or taken twice.

    References:
      Narang et al., `Block-Sparse Recurrent Neural Networks
      <https://arxiv.org/abs/1711.02782>`_, 2017 (pooled by the maximum).

    >>> import jax.numpy as jnp, jprune
    >>> kernel = jnp.array([[1., 1., 3.], [1., 1., 3.], [9., 9., 1.]])
    >>> jprune.find_masks(kernel, .5, structure=jprune.structures.block((2, 2)))
    Array([[False, False,  True],
           [False, False,  True],
           [ True,  True, False]], dtype=bool)
    """
    sizes = tuple(shape) if isinstance(shape, Sequence) else (shape,)
    if not sizes:
        raise ValueError("`block(shape)` must not be empty.")
    tile = tuple(_check_size("block", "shape", size) for size in sizes)
    axes = check_axes(
        "block", in_axis=in_axis, out_axis=out_axis, batch_axis=batch_axis
    )
    return _tiles(f"block({tile})", axes, tile, pooling, batch_axis)


@recorded
def n_m(
    n: int,
    m: int,
    *,
    in_axis: Axis = -2,
    out_axis: Axis = -1,
    batch_axis: Axis = (),
) -> Structure:
    """Keeps ``n`` of each ``m`` consecutive inputs, as 2:4 hardware asks for.

    A unit is a weight, a pool ``m`` of them along the contracted axis. At a
    sparsity ``s`` each pool keeps ``max(n, round(m * (1 - s)))``, so a schedule
    that ends at ``1 - n / m`` or above passes through legal patterns only. A
    number that is above ``1 - n / m`` by more than this rounding is refused.

    Under ``erdos_renyi`` the formula holds with each leaf's own sparsity.
    ``global_ranking``, which promises no equal numbers, is refused.

    Args:
      n: How many stay at least, from 0 to ``m``. Static.
      m: Of how many. Static.
      in_axis: The contracted axes; several are merged in the given order.
      out_axis: Axes of outputs.
      batch_axis: Axes that stack layers.

    Returns:
      A :class:`Structure`. Masks cost one pass of ``m`` comparisons per weight.

    Raises:
      ValueError: Here if ``n > m``; when used, if ``m`` does not divide a leaf's
        contracted axis, or an axis is out of range or taken twice.

    References:
      Mishra et al., `Accelerating Sparse Deep Neural Networks
      <https://arxiv.org/abs/2104.08378>`_, 2021: 2:4.
      Zhou et al., `Learning N:M Fine-grained Structured Sparse Neural Networks
      From Scratch <https://arxiv.org/abs/2102.04010>`_, 2021.

    >>> import jax.numpy as jnp, jprune
    >>> kernel = jnp.array([[1., -9.], [2., 8.], [-3., 7.], [4., 6.]])
    >>> masks = jprune.find_masks(
    ...     kernel, .5, structure=jprune.structures.n_m(2, 4))
    >>> masks.T.tolist()
    [[False, False, True, True], [True, True, False, False]]
    """
    n, m = _check_size("n_m", "n", n, 0), _check_size("n_m", "m", m)
    if n > m:
        raise ValueError(f"`n_m(n, m)` needs n <= m, got n={n}, m={m}.")
    axes = check_axes(
        "n_m", in_axis=in_axis, out_axis=out_axis, batch_axis=batch_axis
    )

    def read(path: Any, shape: tuple[int, ...]) -> Layout:
        inner, outer, batch, window = place_axes("n_m", path, len(shape), axes)
        size = int(np.prod([shape[i] for i in inner], dtype=int))
        if size % m:
            raise ValueError(
                f"`n_m({n}, {m})`: the contracted axis of {path_name(path)!r} has "
                f"{size} entries, which {m} does not divide; "
                "`where=` can leave the leaf out."
            )
        # Only the contracted axes are merged: others stay as a mesh has them.
        rest = [(i,) for i in (*batch, *window, *outer)]
        return Layout(((), inner, *rest), (m,) + (1,) * len(rest))

    def kept(sparsity: Any, sizes: np.ndarray) -> Any:
        left = _counts.fraction_of(_counts.density_of(sparsity), sizes)
        if not isinstance(left, _counts.Count):
            return np.maximum(left, n)
        least = _counts.count_of(np.full(sizes.shape, n))
        return _counts.where(_counts.less(left, least), least, left)

    return _structure(read, batch_axis=batch_axis, kept=kept, few=True)


@recorded
def channel(
    axis: Axis = -1, *, pooling: str = "l2", batch_axis: Axis = ()
) -> Structure:
    """Whole slices along an axis: outputs, inputs, heads.

    Biases and the layers that follow are not touched: a lost output still has
    its bias.

    Args:
      axis: The axis of which each index is a unit; of several axes, each
        combination of indices.
      pooling: ``"l2"``, ``"l1"``, ``"mean"`` or ``"max"``, of a unit's scores.
      batch_axis: Axes that stack layers: each index is a pool of its own.

    Returns:
      A :class:`Structure`; goes with every allocation.

    Raises:
      ValueError: Here for an unknown ``pooling``; when used, if an axis is out of
        range or taken twice.

    References:
      Li et al., `Pruning Filters for Efficient ConvNets
      <https://arxiv.org/abs/1608.08710>`_, 2016 (pooled by L1).

    >>> import jax.numpy as jnp, jprune
    >>> kernel = jnp.array([[1., 2., 3.], [1., 0., 0.]])
    >>> jprune.find_masks(kernel, 1 / 3, structure=jprune.structures.channel())
    Array([[False,  True,  True],
           [False,  True,  True]], dtype=bool)
    """
    check_pooling("channel", pooling)
    axes = check_axes("channel", axis=axis, batch_axis=batch_axis)

    def read(path: Any, shape: tuple[int, ...]) -> Layout:
        own, batch, rest = place_axes("channel", path, len(shape), axes)
        others = sorted((*own, *rest))  # as they lie: nothing is transposed
        tiles = (1 if i in own else max(shape[i], 1) for i in others)
        return Layout((batch, *((i,) for i in others)), tuple(tiles))

    return _structure(read, pooling, batch_axis=batch_axis)
