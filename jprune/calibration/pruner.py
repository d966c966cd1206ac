"""A program gone through once: each product is pruned when it is met."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jprune._core.stats import Moments
from jprune._core.views import Steps, put
from jprune.calibration.rows import Matrices, gram
from jprune.calibration.values import Data, Value, View
from jprune.calibration.walk import Walk, moments_of, summed, weigh
from jprune.jaxprs.versions import read_cond, read_scan


class Sums(NamedTuple):
    """What a product is solved from; ``cross`` and ``dense`` if targets are others'."""

    own: Moments
    cross: Any = None  # [G, K, K], sum of x x_dense^T
    dense: Any = None  # Moments of the dense model's inputs


class Pruner(Walk):
    """Walks with all batches at once, and hands each product to ``meet``.

    Args:
      leaves: The parameters.
      names: Their paths.
      weights: Of rows, for each batch, or None.
      meet: ``(leaf, steps, sums, pruner)`` of a product, where ``steps`` have the
        layer that is met in place of all, and ``sums(dense)`` are its inputs'.
      wanted: ``(leaf, steps)``: whether a product is to be met.
    """

    def __init__(
        self,
        leaves: Sequence[Any],
        names: Sequence[str],
        weights: Any,
        meet: Any,
        wanted: Any,
    ) -> None:
        super().__init__(leaves, names, weights)
        self._meet, self._wanted = meet, wanted
        self._last: list[tuple[Any, Any, Sums]] = []

    def seen(self, how: Matrices, x: Data) -> None:
        view = how.view
        if not self._wanted(view.leaf, view.steps):
            return

        def sums(dense: bool) -> Sums:
            key = how.how, dense
            for known, (data, _), found in self._last:
                if data is x and known == key:
                    return found
            found = self._sums(how, x, self.names[view.leaf], dense)
            self._last = [*self._last[-1:], (key, (x, how), found)]
            return found

        self._meet(view.leaf, view.steps, sums, self)

    def _sums(self, how: Matrices, x: Data, path: str, targets: bool) -> Sums:
        total: Any = None
        sizes = how.group_sizes
        # Rows that were sent elsewhere in the dense model are not these.
        same = sizes is None or sizes.dense is None
        both = targets and x.dense is not None and same
        for own, dense, weights in self.rows(how, x, path):

            def part_of(own: Any, dense: Any, weights: Any) -> Sums:
                x = how.rows(own)
                if not both:
                    return Sums(_moments(x, weights))
                y = how.rows(dense)
                return Sums(
                    _moments(x, weights),
                    _cross(x, y, weights),
                    _moments(y, weights),
                )

            part = summed(part_of, own, dense if both else None, weights)
            total = (
                part if total is None else jax.tree.map(jnp.add, total, part)
            )
        result: Sums = total
        return result

    def write(self, leaf: int, steps: Steps, matrix: Any) -> None:
        """A part of a parameter becomes another."""
        now = jnp.asarray(self.leaves[leaf])
        self.leaves[leaf] = put(steps, now, matrix.astype(now.dtype))

    def scan(self, eqn: Any, ins: list[Value]) -> list[Value]:
        loop = read_scan(eqn)
        ins = [self.whole(x) for x in ins]
        fixed, carry, stacks = loop.inputs(ins)
        state = [self.read(x)._replace(live=True) for x in carry]
        order = range(loop.length)
        rows: list[list[Data]] = []
        for layer in reversed(order) if loop.reverse else order:
            inside = [_layer(x, layer) for x in stacks]
            outs = self.program(loop.body, [*fixed, *state, *inside])
            state, ys = loop.outputs([self.read(x) for x in outs])
            state = [x._replace(live=True) for x in state]
            rows.append(ys)
        if loop.reverse:
            rows.reverse()
        return [*state, *map(_stacked, zip(*rows, strict=True))]

    def cond(self, eqn: Any, ins: list[Value]) -> list[Value]:
        branches = read_cond(eqn)
        index = [int(i) for i in self.read(ins[0]).own]
        index = [min(max(i, 0), len(branches) - 1) for i in index]
        if len(set(index)) == 1:
            return self.program(branches[index[0]], ins[1:])
        found: dict[int, list[Data]] = {}
        weights = self.weights
        for k in sorted(set(index)):  # batches that go the same way
            here = [i for i, branch in enumerate(index) if branch == k]
            if weights is not None:
                self.weights = [weights[i] for i in here]
            some = [_batches(x, here) for x in ins[1:]]
            outs = [self.read(x) for x in self.program(branches[k], some)]
            for n, i in enumerate(here):
                found[i] = [_batches(x, [n]) for x in outs]  # type: ignore[misc]
        self.weights = weights
        each = [found[i] for i in range(len(index))]
        return [_joined(xs) for xs in zip(*each, strict=True)]


_moments = jax.jit(moments_of)


@jax.jit
def _cross(x: jax.Array, y: jax.Array, weights: Any) -> jax.Array:
    return gram(x if weights is None else weigh(x, weights)[0], y)


def _layer(x: Value, layer: int) -> Value:
    """One layer of a stack."""
    if isinstance(x, View):
        one = x.then("index", layer, shape=x.shape[1:])
        return one

    def take(xs: Any) -> Any:
        return tuple(
            lax.dynamic_index_in_dim(
                jnp.asarray(a), np.int32(layer), keepdims=False
            )
            for a in xs
        )

    dense = None if x.dense is None else take(x.dense)
    return Data(take(x.own), dense, x.live, x.labels[1:])


def _stacked(layers: Sequence[Data]) -> Data:
    """Outputs of all layers, one after the other."""
    many = max(len(x.own) for x in layers)

    def side(values: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
        return tuple(
            jnp.stack([x[i if len(x) > 1 else 0] for x in values])
            for i in range(many)
        )

    dense = None
    if any(x.dense is not None for x in layers):
        dense = side([x.own if x.dense is None else x.dense for x in layers])
    labels = ((), *layers[0].labels) if layers[0].labels else ()
    own = side([x.own for x in layers])
    return Data(own, dense, any(x.live for x in layers), labels)


def _batches(x: Value, here: Sequence[int]) -> Value:
    if isinstance(x, View) or len(x.own) == 1:
        return x
    dense = None if x.dense is None else tuple(x.dense[i] for i in here)
    return x._replace(own=tuple(x.own[i] for i in here), dense=dense)


def _joined(values: Sequence[Data]) -> Data:
    """Batches that went different ways, together again."""
    own = tuple(x.own[0] for x in values)
    dense = None
    if any(x.dense is not None for x in values):
        dense = tuple((x.dense or x.own)[0] for x in values)
    return values[0]._replace(own=own, dense=dense, live=True, made=None)


def general(steps: Steps) -> Steps:
    """The steps of all layers, of those of one."""
    for k, step in enumerate(steps):
        if step[0] == "index":
            return (*steps[:k], ("map", general(steps[k + 1 :])))
    return steps


def layers_of(steps: Steps) -> tuple[int, ...]:
    """Which layers the steps of one have."""
    return tuple(step[1] for step in steps if step[0] == "index")


def one_layer(steps: Steps, layers: tuple[int, ...]) -> Steps:
    """The steps of one layer, of those of all."""
    if not layers:
        return steps
    for k, step in enumerate(steps):
        if step[0] == "map":
            inner = one_layer(step[1], layers[1:])
            return (*steps[:k], ("index", layers[0]), *inner)
    raise AssertionError("a layer of what is not stacked")
