"""Sums of what parameters are multiplied with, inside a compiled program."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jprune._core.stats import Moments, Site
from jprune._core.views import Steps
from jprune.calibration.rows import Matrices
from jprune.calibration.values import Data, Value, View, view_of
from jprune.calibration.walk import Walk, moments_of, summed
from jprune.jaxprs.versions import read_cond, read_scan


class Seen(NamedTuple):
    """A product: of which parameter, and which sums of its inputs."""

    leaf: int
    steps: Steps
    groups: tuple[int, int]  # G and N
    moments: int
    bias: tuple[int, Steps] | None = None
    repeated: bool = False  # the same weights at every turn of a loop


class Reader(Walk):
    """Notes products and sums up their inputs; arrays may be traced."""

    def __init__(self, *args: Any, wanted: Callable[[int], bool]) -> None:
        super().__init__(*args)
        self.wanted = wanted
        self.found: list[Seen] = []
        self.sums: list[Moments] = []
        self._known: dict[Any, tuple[Any, int]] = {}

    def seen(self, how: Matrices, x: Data) -> int | None:
        view = how.view
        if not self.wanted(view.leaf):
            return None
        key = id(x), how.how
        if key not in self._known:
            parts = [
                summed(lambda x, w: moments_of(how.rows(x), w), own, weights)
                for own, _, weights in self.rows(how, x, self.names[view.leaf])
            ]
            self._known[key] = ((x, how), self._new(_total(parts)))
        groups = view.shape[0], view.shape[2]
        number = self._known[key][1]
        self.found.append(Seen(view.leaf, view.steps, groups, number))
        return len(self.found) - 1

    def _new(self, sums: Moments) -> int:
        self.sums.append(sums)
        return len(self.sums) - 1

    def biased(self, key: Any, leaf: int, steps: Any) -> None:
        if key is not None:
            one = self.found[key]
            steps = (*steps, ("reshape", one.groups))
            self.found[key] = one._replace(bias=(leaf, steps))

    def scan(self, eqn: Any, ins: list[Value]) -> list[Value]:
        loop = read_scan(eqn)
        ins = [self.whole(x) for x in ins]
        fixed, carry, stacks = loop.inputs(ins)
        first = len(fixed) + len(carry)
        start = [self.read(x) for x in carry]
        values = [*fixed, *start, *stacks]
        inside = Inside(self, values, lambda i: i >= first, loop=True)
        labels = {len(fixed) + i: x.labels for i, x in enumerate(start)}
        arrays = _numbers(self, values)

        def body(state: Any, xs: Any) -> Any:
            now, sums = state
            outs, seen = inside.run(
                loop.body, [*arrays[: len(fixed)], *now, *xs], labels
            )
            new, ys = outs[: len(carry)], outs[len(carry) :]
            once = [
                m for m, each in zip(seen, inside.each, strict=True) if not each
            ]
            every = [
                m for m, each in zip(seen, inside.each, strict=True) if each
            ]
            if sums is not None:
                sums = jax.tree.map(jnp.add, sums, once)
            return (new, sums), (ys, once if sums is None else (), every)

        state, stack = [x.own[0] for x in start], arrays[first:]
        one = jax.tree.map(lambda x: x[0], stack)
        # What is summed; and which rows a carry has that began as 0: those of
        # what it becomes, which may take several turns to see.
        inside.guess, found = self.weights is not None, True
        while found:
            (_, _), (_, once, _) = jax.eval_shape(
                lambda *xs: body(*xs), (state, None), one
            )
            after = enumerate(inside.outs[: len(carry)], len(fixed))
            more = {i: x.labels for i, x in after if not any(labels[i])}
            found = inside.guess and any(map(any, more.values()))
            labels |= more
        inside.guess = self.guess
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), once)
        (new, total), (ys, _, every) = lax.scan(
            body,
            (state, zeros),
            stack,
            length=loop.length,
            reverse=loop.reverse,
        )
        inside.hand_over(ins, total, every)
        return inside.outputs([*new, *ys], len(carry))

    def cond(self, eqn: Any, ins: list[Value]) -> list[Value]:
        branches = read_cond(eqn)
        ins = [self.whole(x) for x in ins]
        index = self.read(ins[0])
        values = _numbers(self, ins[1:])
        runs = [
            Inside(self, ins[1:], lambda i: False, loop=False) for _ in branches
        ]

        def branch(run: Inside, program: Any) -> Any:
            return lambda xs: run.run(program, xs, {})

        parts = [
            branch(run, program)
            for run, program in zip(runs, branches, strict=True)
        ]
        shapes = [jax.eval_shape(part, values)[1] for part in parts]

        def whole(k: int) -> Any:
            def run(xs: Any) -> Any:
                outs, seen = parts[k](xs)
                return outs, [
                    seen if i == k else _zeros(one)
                    for i, one in enumerate(shapes)
                ]

            return run

        number = jnp.asarray(index.own[0]).astype(jnp.int32)
        outs, seen = lax.switch(
            number, [whole(k) for k in range(len(parts))], values
        )
        for run, sums in zip(runs, seen, strict=True):
            run.hand_over(ins[1:], sums, [])
        return runs[0].outputs(outs, len(outs))


class Inside:
    """A reader of the body of a loop, or of a branch, and what becomes of it."""

    def __init__(
        self,
        outer: Reader,
        inputs: Sequence[Value],
        stacked: Callable[[int], bool],
        loop: bool,
    ) -> None:
        self.outer, self.inputs, self.stacked = outer, inputs, stacked
        self.loop, self.guess = loop, outer.guess
        self.live = any(isinstance(x, Data) and x.live for x in inputs)

    def run(
        self, program: Any, xs: Sequence[Any], labels: dict[int, Any]
    ) -> tuple[list[Any], list[Moments]]:
        """The outputs, and the sums of what is seen."""
        outer = self.outer
        values: list[Value] = []
        leaves: list[Any] = []
        names: list[str] = []
        self.at: list[int] = []  # which input each leaf is
        for i, (x, now) in enumerate(zip(self.inputs, xs, strict=True)):
            if isinstance(x, View):
                values.append(view_of(len(leaves), now))
                leaves.append(now)
                names.append(outer.names[x.leaf])
                self.at.append(i)
            else:
                label = labels.get(i, x.labels)
                label = label[1:] if self.stacked(i) else label
                values.append(Data((now,), None, self.live, label))
        reader = Reader(
            leaves, names, outer.weights, wanted=lambda k: self._wanted(k)
        )
        reader.guess = self.guess
        self.reader = reader
        self.outs = [reader.read(x) for x in reader.program(program, values)]
        self.each = [
            any(
                self.stacked(self.at[one.leaf])
                for one in reader.found
                if one.moments == k
            )
            for k in range(len(reader.sums))
        ]
        return [x.own[0] for x in self.outs], reader.sums

    def _wanted(self, leaf: int) -> bool:
        view = self.inputs[self.at[leaf]]
        assert isinstance(view, View)
        return self.outer.wanted(view.leaf)

    def hand_over(self, inputs: Sequence[Value], once: Any, every: Any) -> None:
        """Products and sums become the outer reader's."""
        outer, reader = self.outer, self.reader
        once, every = list(once), list(every)
        sums = [every.pop(0) if each else once.pop(0) for each in self.each]
        numbers: dict[Any, int] = {}
        for one in reader.found:
            stacked = self.stacked(self.at[one.leaf])
            key = one.moments, stacked
            if key not in numbers:
                total = sums[one.moments]
                if self.each[one.moments] and not stacked:
                    total = jax.tree.map(lambda x: x.sum(0), total)
                numbers[key] = outer._new(total)
            leaf, steps = self._outer(inputs, one.leaf, one.steps)
            bias = None
            if one.bias and self.stacked(self.at[one.bias[0]]) == stacked:
                bias = self._outer(inputs, *one.bias)
            again = one.repeated or (self.loop and not stacked)
            outer.found.append(
                Seen(leaf, steps, one.groups, numbers[key], bias, again)
            )
        for leaf, times in reader.reads.items():
            view = inputs[self.at[leaf]]
            assert isinstance(view, View)
            outer.reads[view.leaf] += times

    def _outer(
        self, inputs: Sequence[Value], leaf: int, steps: Steps
    ) -> tuple[int, Steps]:
        view = inputs[self.at[leaf]]
        assert isinstance(view, View)
        if self.stacked(self.at[leaf]):
            return view.leaf, (*view.steps, ("map", steps))
        return view.leaf, (*view.steps, *steps)

    def outputs(self, arrays: Sequence[Any], carried: int) -> list[Value]:
        """The outputs outside: stacks have an axis more."""
        return [
            Data(
                (x,),
                None,
                True,
                (() if i < carried else ((),)) + tuple(out.labels),
            )
            for i, (x, out) in enumerate(zip(arrays, self.outs, strict=True))
        ]


def _numbers(reader: Reader, values: Sequence[Value]) -> list[Any]:
    """One array for each value: views as they are seen, and not as a read."""
    found = []
    for x in values:
        if isinstance(x, View):
            found.append(x.read(reader.leaves[x.leaf]))
        else:
            found.append(x.own[0])
    return found


def _zeros(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), tree)


def _total(parts: Sequence[Moments]) -> Moments:
    total = parts[0]
    for part in parts[1:]:
        total = jax.tree.map(jnp.add, total, part)
    return total


def sites_from(reader: Reader) -> list[Site]:
    """Products as data: a bias counts if nothing else reads it."""
    uses: dict[int, list[Steps]] = {}
    for one in reader.found:
        if one.bias is not None:
            uses.setdefault(one.bias[0], []).append(one.bias[1])
    sites = []
    for one in reader.found:
        site = Site(reader.names[one.leaf], one.steps, one.moments)
        if one.bias is not None:
            leaf, steps = one.bias
            every = uses[leaf]
            # Parts of it may be read for themselves: layers that are cut out.
            alone = len(set(every)) == len(every) == reader.reads[leaf]
            if alone:
                site = site._replace(bias=reader.names[leaf], bias_steps=steps)
        sites.append(site)
    return sites
