"""What stands in a program while it is read: numbers, and parts of parameters."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np

from jprune._core.views import Steps, look


class Made(NamedTuple):
    """Outputs of a product that nothing was added to: where its axes came from."""

    key: Any  # the product
    axes: tuple[int | None, ...]  # of its (G, N) axes, counted; None: rows
    sizes: tuple[int, ...]  # of those


class Data(NamedTuple):
    """Arrays, one for each batch, or one for all."""

    own: tuple[Any, ...]
    dense: tuple[Any, ...] | None = (
        None  # of the dense model, if they are others
    )
    live: bool = False  # whether inputs take part
    labels: tuple[Any, ...] = ()  # of its axes, see `labels`; (): none has any
    made: Made | None = None


class View(NamedTuple):
    """A parameter, moved and cut and nothing else."""

    leaf: int
    steps: Steps
    sizes: tuple[int, ...]  # of what the steps show; 1 where it is broadcast
    shape: tuple[int, ...]
    dtype: Any

    def read(self, leaf: Any) -> Any:
        """Its numbers, of a value of the parameter."""
        seen = jnp.asarray(look(self.steps, leaf))
        return jnp.broadcast_to(seen.astype(self.dtype), self.shape)

    def then(self, kind: str, *how: Any, shape: Sequence[int]) -> "View":
        """With one step more, after which it has this shape."""
        shape = tuple(shape)
        return self._replace(
            steps=(*self.steps, (kind, *how)), sizes=shape, shape=shape
        )


Value: TypeAlias = Data | View


def view_of(leaf: int, x: Any) -> View:
    """A parameter as it is."""
    shape = tuple(np.shape(x))
    return View(leaf, (), shape, shape, x.dtype)


def moved(eqn: Any, view: View) -> list[Value] | None:
    """The view after an equation that only moves or cuts it; None: it is others."""
    name, p = eqn.primitive.name, eqn.params
    out = eqn.outvars[0].aval
    whole = view.sizes == view.shape
    if name in SAME:
        return [view._replace(dtype=out.dtype)]
    if name == "transpose":
        order = tuple(p["permutation"])
        if order == tuple(range(len(order))):
            return [view]
        sizes = tuple(view.sizes[k] for k in order)
        new = view.then("transpose", order, shape=out.shape)
        return [new._replace(sizes=sizes)]
    if name in ("reshape", "squeeze", "expand_dims") and whole:
        if name == "reshape" and p.get("dimensions") is not None:
            return None
        return [view.then("reshape", tuple(out.shape), shape=out.shape)]
    if name == "broadcast_in_dim" and len(eqn.invars) == 1:
        own = [1] * len(out.shape)
        for axis, to in enumerate(p["broadcast_dimensions"]):
            own[to] = view.sizes[axis]
        new = view.then("reshape", tuple(own), shape=out.shape)
        return [new._replace(sizes=tuple(own))]
    if name == "slice" and whole:
        strides = p["strides"] or (1,) * len(out.shape)
        how = p["start_indices"], p["limit_indices"], strides
        return [view.then("slice", *map(tuple, how), shape=out.shape)]
    if name in ("split", "unstack") and whole:
        return _parts(eqn, view)
    return None


def _parts(eqn: Any, view: View) -> list[Value]:
    """Slices along one axis, which goes where it is of one position."""
    p, start, found = eqn.params, 0, []
    axis = p["axis"]
    for var in eqn.outvars:
        drop = eqn.primitive.name == "unstack"
        size = 1 if drop else var.aval.shape[axis]
        starts, stops = [0] * len(view.shape), list(view.shape)
        starts[axis], stops[axis] = start, start + size
        shape = [b - a for a, b in zip(starts, stops, strict=True)]
        ones = (1,) * len(shape)
        one = view.then("slice", tuple(starts), tuple(stops), ones, shape=shape)
        if drop:
            new = tuple(var.aval.shape)
            one = one.then("reshape", new, shape=new)
        found.append(one)
        start += size
    return list(found)


SAME = {
    *("convert_element_type", "copy", "copy_p", "name", "stop_gradient"),
    *("optimization_barrier", "sharding_constraint", "device_put"),
    *("pvary", "mesh_cast", "reshard", "layout_constraint"),
}


def carried_out(
    eqn: Any, ins: Sequence[Data], run: Callable[[list[Any]], list[Any]]
) -> list[Data]:
    """An equation for every batch, and for the dense model where it is another."""
    many = max((len(x.own) for x in ins), default=1)

    def outputs(sides: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        rows = [
            run([x[i if len(x) > 1 else 0] for x in sides]) for i in range(many)
        ]
        return list(zip(*rows, strict=True)) or [()] * len(eqn.outvars)

    own = outputs([x.own for x in ins])
    dense: Sequence[Any] = [None] * len(own)
    if any(x.dense is not None for x in ins):
        dense = outputs([x.own if x.dense is None else x.dense for x in ins])
    live = any(x.live for x in ins)
    return [Data(a, b, live) for a, b in zip(own, dense, strict=True)]
