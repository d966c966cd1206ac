"""How the axes of one leaf become pools, units and the weights of a unit."""

import itertools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jprune._core.describe import describe
from jprune._core.ends import ends, partner
from jprune._core.products import Products
from jprune._core.trees import path_name

Axis: TypeAlias = int | Sequence[int]
"""An axis or several, as in ``jax.nn.initializers``."""


class Layout(NamedTuple):
    """What the axes of one leaf are."""

    groups: tuple[tuple[int, ...], ...]  # axes merged into one; first: pools
    tiles: tuple[int, ...]  # weights of a unit along each of the other groups

    @property
    def order(self) -> list[int]:
        """The axes in the order of the groups."""
        return list(itertools.chain(*self.groups))

    @property
    def inverse(self) -> list[int]:
        """What undoes a transposition by ``order``."""
        return list(map(int, np.argsort(self.order)))

    @property
    def plain(self) -> bool:
        """Whether every weight is a unit, the leaf a pool, no axes merged."""
        lone = all(len(group) == 1 for group in self.groups[1:])
        return lone and not self.groups[0] and set(self.tiles) <= {1}

    def merged(self, shape: Sequence[int]) -> list[int]:
        """The sizes of the groups in a leaf of some shape."""
        return [math.prod(shape[i] for i in group) for group in self.groups]


Named: TypeAlias = dict[str, tuple[int, ...]]
"""What axes are, by the names of arguments."""

Axes: TypeAlias = Named | Products
"""The same for all leaves, where nothing is said a kernel's, or as multiplied."""

_KERNEL = ("in_axis", "out_axis")  # of two axes, in this order


def check_axes(call: str, **axes: Any) -> Named:
    """Each argument as a tuple of ints."""
    checked = {}
    for name, axis in axes.items():
        several = isinstance(axis, Sequence) and not isinstance(axis, str)
        try:
            given = map(operator.index, axis if several else (axis,))
            checked[name] = tuple(given)
        except TypeError:
            raise ValueError(
                f"`{call}({name}=...)` must be an int or a sequence of ints, "
                f"got {describe(axis)}."
            ) from None
    return checked


def check_kernel_axes(
    call: str, products: Products | None, **axes: Axis | None
) -> Axes:
    """The same, without those that are None; or the products if there are any."""
    given = {
        name: axis
        for name, axis in axes.items()
        if not (name in _KERNEL and axis is None)
    }
    if products is None:
        return check_axes(call, **given)
    if not isinstance(products, Products):
        raise ValueError(
            f"`{call}(axes=...)` must be what `jprune.trace_products(fn, "
            f"params, *args)` returns, got {describe(products)}."
        )
    twice = [name for name, axis in given.items() if axis != ()]
    if twice:
        raise ValueError(
            f"`{call}(axes=..., {twice[0]}=...)`: give one of both: "
            "products say what the axes are."
        )
    return products


def place_kernel_axes(
    call: str, path: Any, shape: tuple[int, ...], axes: Axes
) -> list[tuple[int, ...]]:
    """Axes of inputs, outputs and layers of one leaf, then those of a window."""
    if isinstance(axes, Products):
        axes = _multiplied(call, path, axes)
    elif not set(_KERNEL) <= axes.keys():
        axes = _guessed(call, path, shape, axes)
    names = (*_KERNEL, "batch_axis")
    return place_axes(call, path, len(shape), {n: axes[n] for n in names})


def _guessed(
    call: str, path: Any, shape: tuple[int, ...], axes: Named
) -> Named:
    """Of two axes the first is contracted, unless the name says otherwise."""
    layers = {axis % len(shape) for axis in axes["batch_axis"] if shape}
    rest = [(axis,) for axis in range(len(shape)) if axis not in layers]
    if len(rest) != 2 or path_name(path[-1:]) == "weight":
        raise ValueError(
            f"`{call}(in_axis=None, out_axis=None)`: which axes of "
            f"{path_name(path)!r}, of shape {shape}, are inputs and outputs? "
            "`in_axis=-2, out_axis=-1` for kernels [in, out] and of "
            "convolutions, `in_axis=-1, out_axis=-2` for weights [out, in] of "
            "Equinox and PyTorch, `axes=jprune.trace_products(fn, params, "
            "*args)` for all that a function multiplies; `where=` can leave "
            "the leaf out."
        )
    return dict(zip(_KERNEL, rest, strict=True)) | axes


def place_axes(
    call: str, path: Any, ndim: int, axes: Named
) -> list[tuple[int, ...]]:
    """The axes of each argument from the front, then all others."""
    owner: dict[int, str] = {}
    placed = []
    for name, group in axes.items():
        for axis in group:
            if not -ndim <= axis < ndim:
                raise ValueError(
                    f"`{call}({name}=...)`: axis {axis} is out of range for "
                    f"{path_name(path)!r} with {ndim} axes."
                )
            if axis % ndim in owner:
                raise ValueError(
                    f"`{call}({name}=...)`: axis {axis} of {path_name(path)!r} "
                    f"is already taken by `{owner[axis % ndim]}`."
                )
            owner[axis % ndim] = name
        placed.append(tuple(axis % ndim for axis in group))
    return [*placed, tuple(i for i in range(ndim) if i not in owner)]


def _multiplied(call: str, path: Any, products: Products) -> Named:
    """The axes of one leaf, as it is multiplied."""
    known = list(
        dict.fromkeys([*(use.path for use in products.uses), *products.missed])
    )
    i = partner(path, ends(known))
    own = None if i is None else known[i]
    found = {use[1:4] for use in products.uses if use.path == own}
    if own in products.missed:
        why = products.missed[own]
    elif len(found) == 1:
        ((inner, outer, batch),) = found
        return {"in_axis": inner, "out_axis": outer, "batch_axis": batch}
    elif found:
        why = "it is multiplied along different axes in several places"
    else:
        why = "it is in no product"
    raise ValueError(
        f"`{call}(axes=...)`: {path_name(path)!r} has no axes of its own: {why}; "
        "`where=` can leave the leaf out, `in_axis=` and `out_axis=` say its axes."
    )


def split_axes(x: jax.Array, layout: Layout, fill: float = 0.0) -> jax.Array:
    """``[pools, units, weights, units, weights, ...]``, for each group but the
    first how many units there are and how many weights each has along it.

    Ragged edges are filled.
    """
    pools, *dims = layout.merged(x.shape)
    x = jnp.transpose(x, layout.order).reshape(pools, *dims)
    edges = [(0, -d % t) for d, t in zip(dims, layout.tiles, strict=True)]
    x = jnp.pad(x, [(0, 0), *edges], constant_values=fill)
    pairs = [(-(-d // t), t) for d, t in zip(dims, layout.tiles, strict=True)]
    return x.reshape(pools, *itertools.chain(*pairs))


def join_axes(
    x: jax.Array, layout: Layout, shape: tuple[int, ...]
) -> jax.Array:
    """The inverse of :func:`split_axes`, for a leaf of some shape."""
    pools, *dims = layout.merged(shape)
    whole = [x.shape[i] * x.shape[i + 1] for i in range(1, x.ndim, 2)]
    x = x.reshape(pools, *whole)[:, *map(slice, dims)]
    moved = [shape[axis] for axis in layout.order]
    return jnp.transpose(x.reshape(moved), layout.inverse)


def members(layout: Layout, shape: tuple[int, ...]) -> np.ndarray:
    """How many weights each unit of a pool has: fewer at a ragged edge."""
    counts = np.ones((), np.int64)
    sizes = layout.merged(shape)[1:]
    for size, tile in zip(sizes, layout.tiles, strict=True):
        starts = np.arange(0, size, tile)
        counts = np.multiply.outer(counts, np.minimum(tile, size - starts))
    return counts


def units_spec(x: jax.Array, layout: Layout) -> PartitionSpec:
    """How units are divided on an Explicit mesh, given how weights are.

    The axis of pools is not: what belongs to a pool is everywhere.
    """
    sharding = jax.typeof(x).sharding
    sizes, tiles = layout.merged(x.shape), (1, *layout.tiles)
    found: list[Any] = [None]
    axes = list(zip(layout.groups, sizes, tiles, strict=True))
    for group, size, tile in axes[1:]:
        parts = [sharding.spec[axis] for axis in group]
        names = list(itertools.chain(*map(_names, parts)))
        pieces = math.prod(sharding.mesh.shape[name] for name in names)
        even = -(-size // tile) % pieces == 0
        found.append(tuple(names) if names and even else None)
    return PartitionSpec(*found)


def _names(part: Any) -> tuple[str, ...]:
    if part is None:
        return ()
    return part if isinstance(part, tuple) else (part,)


def on_mesh(x: jax.Array) -> bool:
    """Whether an array may be divided among devices, as its type says.

    Not where all axes are manual: inside ``shard_map`` it is what one device has.
    """
    mesh = jax.typeof(x).sharding.mesh
    return not (mesh.empty or mesh.are_all_axes_manual)


def laid_out_like(x: jax.Array, here: jax.Array) -> jax.Array:
    """``here``, on an Explicit mesh divided as ``x`` of the same shape is."""
    sharding = jax.typeof(x).sharding
    if sharding.mesh.are_all_axes_explicit:
        here = jax.sharding.reshard(here, sharding)
    return here


def placed_like(x: Any, here: Any) -> Any:
    """A concrete array ``here``, on a mesh divided as ``x`` of the same shape is."""
    sharding = getattr(x, "sharding", None)
    if not isinstance(sharding, NamedSharding):
        return here
    # Not `device_put`: the devices may be those of several hosts.
    return jax.jit(_same, out_shardings=sharding)(here)


def _same(x: Any) -> Any:
    return x


def everywhere(x: jax.Array) -> jax.Array:
    """``x``, on an Explicit mesh whole on every device."""
    # The array's own mesh: none need be set by `jax.set_mesh`.
    mesh = jax.typeof(x).sharding.mesh
    if mesh.are_all_axes_explicit:
        x = jax.sharding.reshard(x, NamedSharding(mesh, PartitionSpec()))
    return x


def rearrange(
    function: Callable[[jax.Array], jax.Array],
    x: jax.Array,
    mesh: Any,
    spec: PartitionSpec,
) -> jax.Array:
    """``function(x)``, on an Explicit mesh divided in the end as ``spec`` says.

    What moves weights between axes is not defined for Explicit axes, and the
    partitioner of Auto axes does it well.
    """
    specs = (*spec, *jax.typeof(x).sharding.spec)
    if any(name is not None for name in specs):
        sharding = NamedSharding(mesh, spec)
        function = jax.sharding.auto_axes(function, out_sharding=sharding)
    return function(x)
