"""A program and its parameters, walked as often as there is more to know."""

from typing import Any

import jax
import numpy as np

from jprune._core.typing import Tree
from jprune.compaction.graph import constants as constants
from jprune.compaction.graph import control as control
from jprune.compaction.graph import conv as conv
from jprune.compaction.graph import exact as exact
from jprune.compaction.graph import moves as moves
from jprune.compaction.graph import reshape as reshape
from jprune.compaction.graph.constants import Array, Known
from jprune.compaction.graph.ids import Ids
from jprune.compaction.graph.walk import (
    Multiplication,
    Site,
    Value,
    Walk,
)
from jprune.jaxprs.program import Leaf, abstract, leaves_of
from jprune.jaxprs.shapes import is_number
from jprune.jaxprs.versions import (
    CALLS,
    held,
    is_literal,
    opened,
    read_scan,
)


class Trace:
    """The jaxpr of ``fn(params, *args)``, and ids for all axes of ``params``.

    Units have numbers; ``units[leaf][axis]`` says which of them each position
    is a part of: ``[n, factors]``, or ``[layers, n, factors]`` for the stacked
    layers of a scan; -1 is no unit.
    """

    def __init__(self, fn: Any, params: Tree, args: tuple[Any, ...]) -> None:
        self.leaves = leaves_of(params)
        self.jaxpr, self.output = jax.make_jaxpr(fn, return_shape=True)(
            abstract(params), *abstract(args)
        )
        self.ids = Ids()
        self.products: list[Multiplication] = []
        program, _ = opened(self.jaxpr)
        stacked = _stacked(program, len(self.leaves))
        read = {
            v for eqn in program.eqns for v in eqn.invars if not is_literal(v)
        }
        used = [v in read for v in program.invars]
        self.axes = [
            self._new(leaf, i in stacked, used[i])
            for i, leaf in enumerate(self.leaves)
        ]
        self._args = [
            self._argument(i, var.aval)
            for i, var in enumerate(program.invars[len(self.leaves) :])
        ]

    def _new(self, leaf: Leaf, stacked: bool, read: bool) -> list[Array]:
        why = None if leaf.floating else "not floating"
        why = why if read else "not used"
        axes = [self.ids.new(n, why) for n in leaf.shape]
        if stacked:
            layers = leaf.shape[0]
            for k, n in enumerate(leaf.shape[1:], 1):
                axes[k] = self.ids.new(layers * n, why).reshape(layers, n, 1)
        return axes

    def _argument(self, i: int, aval: Any) -> Value:
        ids = tuple(
            self.ids.new(n, f"axis {k} of array {i} of the arguments")
            if is_number(n)
            else None
            for k, n in enumerate(aval.shape)
        )
        return Value(
            aval.shape, ids, constants.nothing(len(aval.shape), aval.dtype)
        )

    def walk(self, known: list[Known | None]) -> Walk:
        """Walks with what is known of each leaf; outputs stay as they are."""
        walk = Walk(self.ids)
        params = [
            Value(
                leaf.shape,
                tuple(axes),
                constants.nothing(len(leaf.shape), leaf.dtype)
                if here is None
                else here,
                (i, ()),
            )
            for i, (leaf, axes, here) in enumerate(
                zip(self.leaves, self.axes, known, strict=True)
            )
        ]
        outs = walk.closed(self.jaxpr, params + self._args)
        walk.consume(outs)
        for value in outs:
            walk.freeze("an axis of the output", *walk.unstack(value).ids)
        return walk

    def number(self) -> None:
        """Numbers the units that may go."""
        self.frozen = self.ids.frozen()
        roots = [[self.ids.resolve(x) for x in axes] for axes in self.axes]
        flat = [x.ravel() for axes in roots for x in axes]
        found = np.unique(np.concatenate([*flat, np.zeros(1, int)]))
        fixed = np.fromiter(self.frozen, int, len(self.frozen))
        self.roots = found[(found > 0) & ~np.isin(found, fixed)]
        self.count = len(self.roots)
        self.units = [[self._unit(x) for x in axes] for axes in roots]

    def _unit(self, roots: Array) -> Array:
        """The numbers of some roots, -1 for what is no unit."""
        if not self.count:
            return np.full(roots.shape, -1)
        at = np.searchsorted(self.roots, roots).clip(max=self.count - 1)
        return np.where(self.roots[at] == roots, at, -1)

    def freeze(self, units: Array, why: str) -> None:
        """These units stay, from the next numbering on."""
        if units.size:
            self.ids.freeze(self.roots[units, None], why)

    def touched(self, site: Site, which: Array) -> Array:
        """The units of some positions of a sum."""
        if not which.any():
            return np.zeros(0, int)
        units = np.unique(self.units_of(site.ids[which]))
        return units[units >= 0]

    def units_of(self, ids: Array) -> Array:
        """The numbers of the units of some positions, ``[n, factors]``."""
        return self._unit(self.ids.resolve(ids))

    def gone(self, i: int, dead: Array) -> list[Array]:
        """Which positions of each axis of a leaf go with the ``dead`` units."""
        padded = np.append(dead, False)  # -1 is never dead
        return [padded[units].any(-1) for units in self.units[i]]

    def zeroed(self, dead: Array) -> list[Known | None]:
        """Leaves of which nothing is known but that dead units are 0."""
        return [
            _zeroed(leaf, self.gone(i, dead))
            for i, leaf in enumerate(self.leaves)
        ]


def along(gone: list[Array], ndim: int) -> list[Array]:
    """For each axis that lost anything, which entries: of size 1 elsewhere."""
    found = []
    for axis, here in enumerate(gone):
        if here.any():
            shape = [1] * ndim
            shape[axis] = here.shape[-1]
            if here.ndim == 2:
                shape[0] = here.shape[0]
            found.append(here.reshape(shape))
    return found


def _zeroed(leaf: Leaf, gone: list[Array]) -> Known | None:
    lines = along(gone, len(leaf.shape))
    if not lines:
        return None
    shape = np.broadcast_shapes(*(line.shape for line in lines))
    kept = [np.broadcast_to(~line, shape) for line in lines]
    return constants.Stored(None, kept, leaf.dtype)


def _stacked(program: Any, count: int) -> set[int]:
    """Which of the first inputs a scan goes through layer by layer."""
    found: set[int] = set()

    def follow(jaxpr: Any, names: dict[Any, int]) -> None:
        for eqn in jaxpr.eqns:
            name = eqn.primitive.name
            here = [None if is_literal(v) else names.get(v) for v in eqn.invars]
            if all(i is None for i in here):
                continue
            if name == "scan":
                loop = read_scan(eqn)
                if loop.length <= control.MANY:
                    stacks = loop.inputs(here)[2]
                    found.update(i for i in stacks if i is not None)
            elif name == "convert_element_type" and here[0] is not None:
                names[eqn.outvars[0]] = here[0]
            elif name in CALLS:
                inner, _ = opened(held(eqn))
                pairs = zip(inner.invars, here, strict=True)
                follow(inner, {v: i for v, i in pairs if i is not None})

    names = {v: i for i, v in enumerate(program.invars[:count])}
    follow(program, names)
    return found
