"""A program gone through with numbers, and its products with parameters seen."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jprune._core.stats import Moments
from jprune.calibration.labels import labels_after, row_weights
from jprune.calibration.rows import Matrices, gram, matrices, ragged
from jprune.calibration.values import (
    SAME,
    Data,
    Made,
    Value,
    View,
    carried_out,
    moved,
)
from jprune.jaxprs.primitives import record_of
from jprune.jaxprs.program import interpret
from jprune.jaxprs.records import VIEW, Axes
from jprune.jaxprs.shapes import groups
from jprune.jaxprs.versions import CALLS, bind, evaluate, held


class Walk:
    """Goes through programs; what is seen at products is a subclass's concern.

    Args:
      leaves: The parameters as they are now; they may be replaced on the way.
      names: What they are called in errors.
      weights: Of rows, for each batch; None: all rows count alike.
    """

    def __init__(
        self,
        leaves: Sequence[Any],
        names: Sequence[str],
        weights: Sequence[Any] | None = None,
    ) -> None:
        self.leaves, self.names = list(leaves), names
        self.dense = list(leaves)  # as they were
        self.weights = weights
        self.guess = False  # which rows are weighted is not known yet
        self.reads: Counter[int] = Counter()  # by what does not only move them

    def program(self, program: Any, inputs: Sequence[Value]) -> list[Value]:
        """The outputs of a program."""
        return interpret(program, inputs, _constant, self.equation)

    def equation(self, eqn: Any, ins: list[Value]) -> list[Value]:
        """The outputs of one equation."""
        name = eqn.primitive.name
        views = [i for i, x in enumerate(ins) if isinstance(x, View)]
        if views == [0] and len(ins) == 1:
            found = moved(eqn, ins[0])  # type: ignore[arg-type]
            if found is not None:
                return found
        if name == "dynamic_slice" and views == [0]:
            cut = _cut(eqn, ins)
            if cut is not None:
                return [cut]
        if name in CALLS and (views or self.weights is not None):
            return self.program(held(eqn), ins)
        if views and name == "scan":
            return self.scan(eqn, ins)
        if views and name == "cond":
            return self.cond(eqn, ins)
        if len(views) == 1 and len(ins) == 2:
            (side,) = views
            other, view = ins[1 - side], ins[side]
            assert isinstance(view, View)
            assert isinstance(other, Data)
            if name in ("dot_general", "conv_general_dilated"):
                found = self._product(eqn, side, view, other)
                if found is not None:
                    return found
            if name in ("add", "add_any") and other.made is not None:
                self._added(other.made, view)
        if name == "ragged_dot_general" and views == [1]:
            found = self._product(eqn, 1, ins[1], ins[0], ins[2])
            if found is not None:
                return found
        return self.plain(eqn, [self.read(x) for x in ins])

    def plain(self, eqn: Any, ins: list[Data]) -> list[Value]:
        """An equation of which nothing is to be known."""
        whole = any(
            hasattr(x, "eqns") or hasattr(x, "jaxpr")
            for p in eqn.params.values()
            for x in (p if isinstance(p, tuple | list) else (p,))
        )

        def run(xs: list[Any]) -> list[Any]:
            if whole or eqn.primitive.name.startswith("custom"):
                return evaluate(eqn, xs)
            found = bind(eqn, xs)
            return found if eqn.primitive.multiple_results else [found]

        arrays = [a for x in ins for a in x.own]
        if any(
            isinstance(a, jax.core.Tracer) or np.size(a) > 1 for a in arrays
        ):
            outs = carried_out(eqn, ins, run)
        else:  # an index, say: known although all else is traced
            with jax.ensure_compile_time_eval():
                outs = carried_out(eqn, ins, run)
        if self.weights is not None:
            labels = labels_after(eqn, [x.labels for x in ins])
            outs = [
                x._replace(labels=y) for x, y in zip(outs, labels, strict=True)
            ]
        made = _made_after(eqn, ins)
        return [outs[0]._replace(made=made), *outs[1:]] if made else list(outs)

    def read(self, x: Value) -> Data:
        """Numbers in place of a view."""
        if isinstance(x, Data):
            return x
        self.reads[x.leaf] += 1
        own, dense = self.leaves[x.leaf], self.dense[x.leaf]
        both = None if own is dense else (x.read(dense),)
        return Data((x.read(own),), both)

    def whole(self, x: Value) -> Value:
        """A view that steps alone make; numbers, where it is broadcast too."""
        broadcast = isinstance(x, View) and x.sizes != x.shape
        return self.read(x) if broadcast else x

    def _product(
        self, eqn: Any, side: int, view: Any, x: Any, *sizes: Any
    ) -> list[Value] | None:
        how = ragged(eqn, view, *sizes) if sizes else matrices(eqn, side, view)
        if how is None or not x.live:
            return None
        key = self.seen(how, x)
        ins = [x, self.read(view)]
        (out,) = self.plain(eqn, [*(ins if side else ins[::-1]), *sizes])
        assert isinstance(out, Data)
        made = Made(key, how.made, how.sizes)
        return [out._replace(made=made)]

    def _added(self, made: Made, view: View) -> None:
        """A parameter is added to outputs; whether along all of G and N."""
        mine = [k for k, axis in enumerate(made.axes) if axis is not None]
        mine.sort(key=lambda k: made.axes[k] or 0)
        if [made.axes[k] for k in mine] != [*range(len(made.sizes))]:
            return
        wanted = [1] * len(made.axes)
        for k, size in zip(mine, made.sizes, strict=True):
            wanted[k] = size
        if list(view.sizes) != wanted:
            return
        order = (*(k for k in range(len(wanted)) if k not in mine), *mine)
        steps = view.steps
        if order != tuple(range(len(order))):
            steps = (*steps, ("transpose", order))
        self.biased(made.key, view.leaf, steps)

    # What a subclass does with what is seen.

    def seen(self, how: Matrices, x: Data) -> Any:
        """A product; the key by which a bias refers to it."""
        raise NotImplementedError

    def biased(self, key: Any, leaf: int, steps: Any) -> None:
        """A parameter is added to the outputs of a product."""

    def scan(self, eqn: Any, ins: list[Value]) -> list[Value]:
        """A loop over layers or time that reads views."""
        raise NotImplementedError

    def cond(self, eqn: Any, ins: list[Value]) -> list[Value]:
        """A branch that reads views."""
        raise NotImplementedError

    # Rows and their sums.

    def rows(
        self, how: Matrices, x: Data, path: str
    ) -> Iterator[tuple[Any, Any, Any]]:
        """For each batch the inputs, those of the dense model, and rows' weights."""
        for i, own in enumerate(x.own):
            dense = None if x.dense is None else x.dense[i]
            weights = None
            if self.weights is not None and not self.guess:
                weights = row_weights(self.weights[i], x.labels, how, path)
            if how.group_sizes is not None:
                sizes = how.group_sizes.own
                own_sizes = sizes[i if len(sizes) > 1 else 0]
                weights = _of_groups(own_sizes, how.row_sizes[0], weights)
            yield own, dense, weights


def _of_groups(sizes: jax.Array, rows: int, weights: Any) -> jax.Array:
    """The weights of rows for each group, [G, M]: 0 for those of others."""
    ends = jnp.cumsum(sizes)[:, None]
    place = jnp.arange(rows)[None]
    mine = (place < ends) & (place >= ends - sizes[:, None])
    return (
        mine * jnp.ones(rows, np.float32) if weights is None else mine * weights
    )


def summed(function: Callable[..., Any], *inputs: Any) -> Any:
    """Sums over rows, on an Explicit mesh whole on every device.

    How rows are divided has no name there once batch and length are one axis.
    """
    for x in jax.tree.leaves(inputs):
        mesh = jax.typeof(x).sharding.mesh
        if mesh.are_all_axes_explicit:
            whole = NamedSharding(mesh, PartitionSpec())
            return jax.sharding.auto_axes(function, out_sharding=whole)(*inputs)
    return function(*inputs)


def moments_of(x: jax.Array, weights: Any | None) -> Moments:
    """The sums of rows ``[G, M, K]``, weighted by ``[M]`` or ``[G, M]``."""
    if weights is None:
        count = jnp.full(x.shape[:1], x.shape[1], x.dtype)
        return Moments(gram(x, x), jnp.sum(x, 1), count)
    weighted, x, weights = weigh(x, weights)
    return Moments(gram(weighted, x), jnp.sum(weighted, 1), weights.sum(1))


def weigh(
    x: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Rows times their weights, [M] or [G, M]; the rows; the weights, [G, M]."""
    weights = (
        jnp.broadcast_to(weights, (len(x), x.shape[1]))
        if (weights.ndim == 1)
        else weights
    )
    weights = weights.astype(x.dtype)
    x = jnp.broadcast_to(x, (len(weights), *x.shape[1:]))
    return x * weights[..., None], x, weights


def _cut(eqn: Any, ins: Sequence[Value]) -> View | None:
    """A slice of a view whose place is known."""
    view, *starts = ins
    assert isinstance(view, View)
    first = [x.own[0] for x in starts if isinstance(x, Data)]
    if view.sizes != view.shape or any(
        isinstance(x, jax.core.Tracer) for x in first
    ):
        return None
    shape = tuple(eqn.params["slice_sizes"])
    low = [
        min(max(int(x), 0), n - size)
        for x, n, size in zip(first, view.shape, shape, strict=True)
    ]
    high = tuple(a + n for a, n in zip(low, shape, strict=True))
    return view.then("slice", tuple(low), high, (1,) * len(shape), shape=shape)


def _constant(x: Any) -> Data:
    return Data((x,))


def _made_after(eqn: Any, ins: Sequence[Data]) -> Made | None:
    """Where the axes of outputs are, after what only moves them."""
    made = ins[0].made if len(ins) == 1 else None
    if made is None:
        return None
    if eqn.primitive.name in SAME:
        return made
    old, new = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    axes: list[int | None] = [None] * len(new)
    if eqn.primitive.name == "reshape":
        for before, after in groups(old, new):
            own = [k for k in before if old[k] != 1]
            their = [k for k in after if new[k] != 1]
            if len(own) == len(their) == 1:
                axes[their[0]] = made.axes[own[0]]
        return made._replace(axes=tuple(axes))
    record = record_of(eqn)
    if isinstance(record, Axes) and record.form == VIEW:
        for k, places in enumerate(record.outs[0]):
            if places:
                axes[k] = made.axes[places[0][1]]
        return made._replace(axes=tuple(axes))
    return None
