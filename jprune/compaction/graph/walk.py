"""A walk over a jaxpr: which positions are one unit, and what is constant.

What a primitive does to axes its record says (:mod:`jprune.jaxprs.records`); the
modules beside read records, and hold rules where a record is not enough. A primitive
with neither freezes what it reads.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jprune.compaction.graph.constants import Array, Known, constant, nothing
from jprune.compaction.graph.ids import Ids
from jprune.jaxprs.primitives import record_of
from jprune.jaxprs.program import interpret
from jprune.jaxprs.shapes import is_number
from jprune.jaxprs.versions import CALLS, held

Lead = tuple[int, ...]


@dataclass
class Site:
    """Where an axis is summed over: what is removed must add nothing here."""

    ids: Array  # [n, factors] of the positions that are summed
    adds: Array  # [n] bool: whether a position adds anything but 0
    why: str
    cause: str = ""  # of what adds something where a unit is 0
    # For sums whose result is added to a bias alone:
    fixed: Array | None = None  # [n] bool: whether it adds a constant
    terms: Callable[[Array], Array] | None = None  # positions -> what they add
    uses: int = 0
    bias: tuple[int, Lead, tuple[int, ...]] | None = None  # leaf, index, shape


@dataclass(frozen=True)
class Value:
    """A value of the program before any input is seen."""

    shape: tuple[int, ...]
    ids: tuple[Array | None, ...]  # None: computed dense, can be sliced at will
    known: Known
    leaf: tuple[int, Lead] | None = None  # a view of this leaf and no more
    site: Site | None = None  # the sum that it is, and nothing added
    cause: str = ""  # what made it other than 0 where units are 0


@dataclass
class Multiplication:
    """A product of arrays or a convolution: its multiply-adds."""

    whole: int  # all of them
    nonzero: int  # those of which no factor must be 0
    axes: tuple[Array | None, ...]  # ids of those that it goes through
    times: int = 1  # how often it is carried out


Rule = Callable[["Walk", Any, list[Value]], list[Value]]
RULES: dict[str, Rule] = {}  # of primitives that need more than a record
Driver = Callable[["Walk", Any, list[Value], Any], list[Value]]
DRIVERS: dict[type, Driver] = {}  # of the kinds of records
VIEWS = {"reshape", "broadcast_in_dim", "convert_element_type", "squeeze"}
_STACKED = {"scan", "convert_element_type"}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Registers the rule of some primitives."""

    def register(fn: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, fn))
        return fn

    return register


class Walk:
    """One walk; ids outlive it, sites and counts of uses do not."""

    def __init__(self, ids: Ids) -> None:
        self.ids = ids
        self.sites: list[Site] = []
        self.uses: Counter[tuple[int, Lead]] = Counter()
        self.products: list[Multiplication] = []

    def closed(self, program: Any, inputs: list[Value]) -> list[Value]:
        """The outputs of a program."""
        return interpret(program, inputs, fixed_value, self._equation)

    def _equation(self, eqn: Any, ins: list[Value]) -> list[Value]:
        name = eqn.primitive.name
        if name in CALLS:  # as if it stood here
            return self.closed(held(eqn), ins)
        if name not in _STACKED:
            ins = [self.unstack(value) for value in ins]
        self.consume(ins, leaves=name not in VIEWS and name != "scan")
        if name in RULES:
            outs = RULES[name](self, eqn, ins)
        elif (record := record_of(eqn)) is None:
            outs = unknown(self, eqn, ins)
        else:
            outs = DRIVERS[type(record)](self, eqn, ins, record)
        causes = {v.cause: None for v in ins if v.cause}
        first = next(iter(causes), "")
        return [v if v.cause else replace(v, cause=first) for v in outs]

    def consume(self, values: list[Value], leaves: bool = True) -> None:
        """Counts uses: a bias that is used twice can't take a constant."""
        for value in values:
            if value.site is not None:
                value.site.uses += 1
            if leaves and value.leaf is not None:
                self.uses[value.leaf] += 1

    def unstack(self, value: Value) -> Value:
        """Gives up units of their own for every layer of a stack."""
        if all(ids is None or ids.ndim == 2 for ids in value.ids):
            return value
        flat: list[Array | None] = []
        for ids in value.ids:
            if ids is not None and ids.ndim == 3:
                for layer in ids[1:]:
                    self.join("stacked layers", layer, ids[0])
                ids = ids[0]
            flat.append(ids)
        return replace(value, ids=tuple(flat))

    def join(self, why: str, *ids: Array | None) -> Array | None:
        """One axis of several values: position by position the same."""
        real = [x for x in ids if x is not None]
        for other in real[1:]:
            self.ids.union(real[0], other, f"{why}: axes that don't match")
        return real[0] if real else None

    def freeze(self, why: str, *ids: Array | None) -> None:
        """None of these positions is ever removed."""
        for x in ids:
            if x is not None and x.size:
                self.ids.freeze(x, why)

    def new(self, size: Any, why: str | None = None) -> Array | None:
        """An axis; of a symbolic size it is never cut, and needs no ids."""
        return self.ids.new(size, why) if is_number(size) else None

    def fixed(
        self, shape: tuple[int, ...], why: str
    ) -> tuple[Array | None, ...]:
        """Axes that stay as they are."""
        return tuple(self.new(n, why) for n in shape)

    def sums(self) -> list[Site]:
        """The sums to which something is added."""
        return [site for site in self.sites if site.adds.any()]

    def multiply_adds(self) -> tuple[int, int]:
        """All of them, and those of which no factor must be 0."""
        return _total(self.products)

    def most(self, programs: list[list[Multiplication]]) -> None:
        """Of some programs one is carried out; the most costly one counts."""
        dearest: list[Multiplication] = max(programs, key=_total)
        self.products += dearest

    def sum(
        self,
        ids: Array | None,
        adds: Array,
        why: str,
        ins: list[Value],
        **more: Any,
    ) -> Site | None:
        """Registers a sum over an axis; the site, if units are concerned."""
        if ids is None:
            return None
        adds = np.broadcast_to(adds, len(ids))
        cause = next((v.cause for v in ins if v.cause), "")
        site = Site(ids, adds, why, cause, **more)
        self.sites.append(site)
        return site


def _total(products: list[Multiplication]) -> tuple[int, int]:
    return (
        sum(p.times * p.whole for p in products),
        sum(p.times * p.nonzero for p in products),
    )


def free(known: Known, shape: tuple[int, ...]) -> Value:
    """A value that depends on no parameter and on no argument."""
    return Value(tuple(shape), (None,) * len(shape), known)


def fixed_value(x: Any) -> Value:
    """A constant of the program."""
    try:
        return free(constant(np.asarray(x)), np.shape(x))
    except TypeError:  # random keys: shapes are all that is needed
        return free(constant(np.ones(np.shape(x), np.uint8)), np.shape(x))


def unknown(walk: Walk, eqn: Any, ins: list[Value]) -> list[Value]:
    """No rule: nothing that is read may go, nothing is known of the result."""
    why = f"{eqn.primitive.name}: not understood"
    for value in ins:
        walk.freeze(why, *value.ids)
    return [opaque(walk, var.aval, why) for var in eqn.outvars]


def opaque(walk: Walk, aval: Any, why: str) -> Value:
    """A value that stays as it is."""
    shape = getattr(aval, "shape", ())
    known = nothing(len(shape), getattr(aval, "dtype", np.uint8))
    return Value(shape, walk.fixed(shape, why), known)
