"""What is kept of each parameter: plain data."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jax.tree_util import SequenceKey

from jprune._core.ends import ends, partner
from jprune._core.trees import (
    is_hole,
    leaves_with_path,
    path_name,
    rebuild,
    unique_names,
)
from jprune._core.typing import KeyPath, Masks, Tree
from jprune.compaction.graph.constants import Array

Kept = tuple[tuple[int, ...], ...] | None
"""Positions kept of one axis: one row, or one for each layer; None: all."""


class LeafPlan(NamedTuple):
    """The positions of one parameter that are kept."""

    path: str
    shape: tuple[int, ...]  # before
    kept: tuple[Kept, ...]  # by axis

    @property
    def smaller(self) -> tuple[int, ...]:
        """The shape after."""
        return tuple(
            n if rows is None else len(rows[0])
            for n, rows in zip(self.shape, self.kept, strict=True)
        )


class Left(NamedTuple):
    """Positions along an axis of a parameter that are 0 but can't be removed."""

    path: str
    axis: int
    positions: int  # how many of them
    reason: str


class Plan(NamedTuple):
    """The positions of every parameter that are kept: data that can be saved as JSON.

    ``leaves`` is all that is needed to cut parameters. The rest is what
    :func:`compact` found: ``left`` lists zeros that could not be removed, and why;
    ``sizes`` is the number of units of each pool now (of one layer of a stack), by the
    pool's name.

    >>> import jprune
    >>> plan = jprune.compaction.Plan.from_json(
    ...     '{"leaves": [{"path": "w", "shape": [2, 3], "kept": [null, [[0, 2]]]}]}')
    >>> import jax.numpy as jnp
    >>> plan.apply({"w": jnp.arange(6).reshape(2, 3)})["w"].tolist()
    [[0, 2], [3, 5]]
    """

    leaves: tuple[LeafPlan, ...]
    left: tuple[Left, ...] = ()
    sizes: dict[str, int] = {}  # noqa: RUF012 (of a NamedTuple: never changed)

    def to_json(self) -> str:
        """Returns the plan as JSON."""
        return json.dumps(
            {
                "leaves": [leaf._asdict() for leaf in self.leaves],
                "left": [left._asdict() for left in self.left],
                "sizes": self.sizes,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Reads a plan that :meth:`to_json` wrote, also the list that 0.1 wrote.

        Raises:
          ValueError: The text is not a plan.
        """
        try:
            data = json.loads(text)
            if isinstance(data, list):
                data = {"leaves": data}
            return cls(
                tuple(map(_leaf_of, data["leaves"])),
                tuple(Left(**left) for left in data.get("left", ())),
                {str(k): int(n) for k, n in data.get("sizes", {}).items()},
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                "`Plan.from_json(text)`: no plan, got "
                f"{repr(text)[:80]}: {error!r}."
            ) from None

    def apply(self, params: Tree) -> Tree:
        """Cuts other parameters of the same architecture to the kept positions.

        It only slices: it does not fold constants into biases, as :func:`compact`
        does.

        Raises:
          ValueError: A parameter is missing, unknown or of another shape.
        """
        return self._applied(params, None, lambda x: x)

    def _applied(
        self, params: Tree, masks: Masks | None, last: Callable[[Any], Any]
    ) -> Tree:
        """Cut, masked and changed leaf by leaf: no two copies of the result."""
        call = "`plan.apply(params)`"
        mask_of = {} if masks is None else dict(leaves_with_path(masks))
        planned = {leaf.path: leaf for leaf in self.leaves}
        found = []
        leaves = leaves_with_path(params)
        names = unique_names([path for path, _ in leaves])
        for name, (path, x) in zip(names, leaves, strict=True):
            if is_hole(x):
                found.append(x)
                continue
            leaf = planned.pop(name, None)
            if leaf is None:
                raise ValueError(
                    f"{call}: the plan knows no parameter {name!r}; "
                    "it belongs to another architecture."
                )
            if np.shape(x) != leaf.shape:
                raise ValueError(
                    f"{call}: {leaf.path!r} has shape {np.shape(x)}, the plan "
                    f"was made for {leaf.shape}."
                )
            found.append(last(cut(x, leaf.kept, mask_of.get(path))))
        if planned:
            raise ValueError(
                f"{call}: the parameter {next(iter(planned))!r} is missing."
            )
        return rebuild(params, found)

    def take(self, tree: Tree) -> Tree:
        """Cuts optimizer states and other trees in the same way as the parameters.

        It takes an optimizer state, an average of the parameters, gradients or masks.
        A leaf is cut if its path ends in that of a parameter; it may have more axes
        in front (L-BFGS). Other leaves, and arrays of at most one entry, stay as they
        are.

        Raises:
          ValueError: A leaf has the path of a parameter that was cut but another
            shape, or is one of several slots of it (Adafactor, SM3). Such a
            statistic can't be cut: start it with ``init`` of the smaller parameters.
        """
        paths = ends(leaf.path for leaf in self.leaves)
        return rebuild(
            tree,
            [
                _taken(path, x, self._leaf(_owner(path, paths)))
                for path, x in leaves_with_path(tree)
            ],
        )

    def expand(self, params: Tree) -> Tree:
        """Puts smaller parameters back into the large shapes, with 0 elsewhere.

        It undoes :meth:`apply`: parameters that were trained as a compact model return
        to the original architecture. It runs on the host.

        Raises:
          ValueError: A parameter is missing, unknown or not of the smaller shape.

        >>> import jax.numpy as jnp, jprune
        >>> plan = jprune.compaction.Plan((
        ...     jprune.compaction.LeafPlan("w", (2, 3), (None, ((0, 2),))),))
        >>> plan.expand({"w": jnp.array([[1., 2.], [3., 4.]])})["w"].tolist()
        [[1.0, 0.0, 2.0], [3.0, 0.0, 4.0]]
        """
        leaves = leaves_with_path(params)
        arrays = [x for _, x in leaves if not is_hole(x)]
        shapes = [np.shape(x) for x in arrays]
        wanted = [leaf.smaller for leaf in self.leaves]
        if shapes != wanted:
            known = zip(shapes, wanted, strict=False)
            at = next((i for i, (a, b) in enumerate(known) if a != b), -1)
            found = f"{len(shapes)} parameters"
            if at >= 0:
                found = f"{self.leaves[at].path!r} of shape {shapes[at]}"
            raise ValueError(
                f"`plan.expand(params)` takes {len(wanted)} parameters of the "
                f"smaller shapes, got {found}."
            )
        plans = iter(self.leaves)
        return rebuild(
            params,
            [x if is_hole(x) else _spread(x, next(plans)) for _, x in leaves],
        )

    def _leaf(self, i: int | None) -> LeafPlan | None:
        return None if i is None else self.leaves[i]

    def masks(self, leaf: int) -> tuple[Array | None, ...]:
        """Returns masks of what is kept along each axis, ``[layers or 1, n]``."""
        _, shape, kept = self.leaves[leaf]
        found: list[Array | None] = []
        for n, rows in zip(shape, kept, strict=True):
            if rows is None:
                found.append(None)
                continue
            mask = np.zeros((len(rows), n), bool)
            np.put_along_axis(mask, np.array(rows, int), True, 1)
            found.append(mask)
        return tuple(found)


def _leaf_of(data: Any) -> LeafPlan:
    kept = tuple(
        None if rows is None else tuple(tuple(map(int, row)) for row in rows)
        for rows in data["kept"]
    )
    leaf = LeafPlan(str(data["path"]), tuple(map(int, data["shape"])), kept)
    for n, rows in zip(leaf.shape, kept, strict=True):
        for row in rows or ():
            if list(row) != sorted({*row} & {*range(n)}):
                raise ValueError(
                    f"{leaf.path!r} keeps {list(row)} of an axis of {n}"
                )
    return leaf


def _owner(path: KeyPath, paths: dict[str, int]) -> int | None:
    """The parameter that a leaf belongs to: called like it, or a part of it."""
    found = partner(path, paths)
    if found is None and path and isinstance(path[-1], SequenceKey):
        found = partner(path[:-1], paths)  # one of its slots (SM3)
    return found


def _taken(path: KeyPath, x: Any, leaf: LeafPlan | None) -> Any:
    """A leaf of a tree, cut if a parameter is called like it."""
    if leaf is None or is_hole(x) or np.size(x) <= 1 or not any(leaf.kept):
        return x
    shape, more = np.shape(x), np.ndim(x) - len(leaf.shape)
    stacked = any(rows is not None and len(rows) > 1 for rows in leaf.kept)
    if more > 0 and shape[more:] == leaf.shape and not stacked:
        return cut(x, (None,) * more + leaf.kept)
    if shape != leaf.shape:
        raise ValueError(
            f"`take(tree)`: {path_name(path)!r} has shape {shape}, the "
            f"parameter {leaf.path!r} {leaf.shape}: which of its entries are "
            "left can't be told. Use `init` of the smaller parameters."
        )
    return cut(x, leaf.kept)


def cut(x: Any, kept: tuple[Kept, ...], mask: Any = None) -> Any:
    """One array cut to what is kept of each axis, and masked."""
    mask = None if is_hole(mask) else mask
    on_host = isinstance(x, np.ndarray | np.generic)
    if not any(kept) and not on_host:
        return x if mask is None else jnp.where(mask, x, jnp.zeros_like(x))
    if not _can_read(x):
        numpy = np if on_host else jnp
        return _masked(numpy, _cut(numpy, x, kept), mask, kept)
    # On the host nothing is compiled for every shape, and any sharding will do;
    # the smaller array may not divide evenly, so that it goes to all devices.
    sharding = x.sharding
    if isinstance(sharding, NamedSharding):
        sharding = NamedSharding(sharding.mesh, PartitionSpec())
    small = _masked(np, _cut(np, np.asarray(x), kept), mask, kept)
    if not x.committed:  # it stays free to go to any device
        return jnp.asarray(small)
    return jax.device_put(small, sharding)


def in_jax(x: Any) -> Any:
    """A NumPy array as one of JAX, which is not copied at every call.

    A copy of its own. What JAX would round, 64 bits without x64, stays NumPy's.
    """
    if not isinstance(x, np.ndarray | np.generic):
        return x
    known = jnp.issubdtype(x.dtype, np.number) or x.dtype == bool
    if not known or jax.dtypes.canonicalize_dtype(x.dtype) != x.dtype:
        return x
    return jnp.array(x)


def _masked(numpy: Any, x: Any, mask: Any, kept: tuple[Kept, ...]) -> Any:
    """0 where a mask of the whole array is False."""
    if mask is None:
        return x
    mask = _cut(numpy, numpy.asarray(mask), kept)
    if numpy is np and mask.all():
        return x
    return numpy.where(mask, x, numpy.zeros_like(x))


def _can_read(x: Any) -> bool:
    """Whether NumPy can read the array."""
    return (
        isinstance(x, jax.Array)
        and not isinstance(x, jax.core.Tracer)
        and not jnp.issubdtype(x.dtype, jax.dtypes.extended)
        and x.is_fully_addressable
    )


def _cut(numpy: Any, x: Any, kept: tuple[Kept, ...]) -> Any:
    for axis, rows in enumerate(kept):
        if rows is None:
            continue
        places = np.array(rows, int)
        if len(rows) == 1:
            x = numpy.take(x, places[0], axis)
        else:
            shape = [len(rows)] + [1] * (np.ndim(x) - 1)
            shape[axis] = places.shape[1]
            x = numpy.take_along_axis(x, places.reshape(shape), axis)
    return x


def _spread(x: Any, leaf: LeafPlan) -> Any:
    """One array at its places in the large one, 0 elsewhere."""
    if not any(leaf.kept):
        return x
    found = np.asarray(x)
    for axis, rows in enumerate(leaf.kept):
        if rows is None:
            continue
        shape = list(found.shape)
        shape[axis] = leaf.shape[axis]
        large = np.zeros(shape, found.dtype)
        places = np.array(rows, int)
        form = [len(rows)] + [1] * (found.ndim - 1)
        form[axis] = places.shape[1]
        np.put_along_axis(large, places.reshape(form), found, axis)
        found = large
    return jnp.asarray(found)


def kept_of(gone: list[Array]) -> tuple[Kept, ...]:
    """Rows of positions, from which positions of each axis are gone."""
    found: list[Kept] = []
    for here in gone:
        rows = np.atleast_2d(here)
        if not rows.any():
            found.append(None)
            continue
        if (rows == rows[0]).all():
            rows = rows[:1]
        found.append(tuple(tuple(np.flatnonzero(~r).tolist()) for r in rows))
    return tuple(found)
