"""Which axes of a parameter are really multiplied, read off the program."""

import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple, TypeAlias

import jax

from jprune._core.products import Products, Use
from jprune._core.programs import bound, check_call
from jprune._core.typing import Tree
from jprune.jaxprs.primitives import record_of
from jprune.jaxprs.program import Leaf, abstract, interpret, leaves_of
from jprune.jaxprs.records import PRODUCT, VIEW, Axes, Moves
from jprune.jaxprs.shapes import groups
from jprune.jaxprs.versions import (
    CALLS,
    held,
    read_cond,
    read_scan,
    read_solve,
    read_while,
)


def trace_products(
    fn: Any, params: Tree, *args: Any, **static: Any
) -> Products:
    """Finds the axes over which a function multiplies its parameters.

    It reads the jaxpr of ``fn(params, *args)``. A parameter may be transposed,
    reshaped, sliced or converted first; it may be a layer of a stack in a scan, or be
    mapped by ``vmap``. An axis that is neither contracted nor makes outputs is a
    batch axis. The window of a convolution is none of the three.

    Args:
      fn: Any function of parameters and arrays.
      params: Its parameters, arrays or shapes.
      *args: Further arguments, arrays or shapes.
      **static: Keyword arguments of ``fn``; no arrays.

    Returns:
      :class:`Products`. A parameter may have several uses, as tied weights have. It
      is in ``missed`` if it has two axes or more and is looked up, is multiplied only
      after other arithmetic (``w / norm(w)``, ``w1 @ w2``), or never.

    Raises:
      ValueError: ``fn`` is not a function, a parameter or argument is not an array, a
        keyword argument holds arrays, or a parameter's size is a symbol.

    Cost: a trace; nothing is computed.

    >>> import jax.numpy as jnp, jprune
    >>> def fn(params, x):  # as in Equinox and PyTorch
    ...     return x @ params["weight"].T + params["bias"]
    >>> params = {"bias": jnp.ones(8), "weight": jnp.ones((8, 4))}
    >>> print(jprune.trace_products(fn, params, jnp.ones((1, 4))))
    parameter  contracted  outputs  batch  count
    --------------------------------------------
    weight     1           0                   1
    """
    check_call("trace_products", fn, params, args, concrete=False)
    fn = bound("trace_products", fn, static)
    program = jax.make_jaxpr(fn)(abstract(params), *abstract(args))
    return products_of(program, leaves_of(params))


def products_of(program: Any, leaves: list[Leaf]) -> Products:
    """The products of a closed program whose first inputs are parameters."""
    return _walked(program, leaves).found()


def multiply_adds_of(fn: Any, params: Tree, *args: Any) -> dict[str, int]:
    """By path, what products with each parameter cost in a call, if any do."""
    leaves = leaves_of(params)
    program = jax.make_jaxpr(fn)(abstract(params), *args)
    walk = _walked(program, leaves)
    return {leaves[i].path: n for i, n in walk.multiply_adds.items()}


def _walked(program: Any, leaves: list[Leaf]) -> "_Walk":
    walk = _Walk(leaves)
    inputs: list[Value] = [
        View(i, tuple((((k,), n),) for k, n in enumerate(leaf.shape)))
        for i, leaf in enumerate(leaves)
    ]
    inputs += [INPUT] * (len(program.in_avals) - len(leaves))
    walk.closed(program, inputs, 1)
    return walk


Part: TypeAlias = tuple[tuple[int, ...], int]
"""Axes of a parameter that were merged, and how many positions of them are here."""


class View(NamedTuple):
    """A part of a parameter, moved and nothing else."""

    leaf: int
    axes: tuple[tuple[Part, ...], ...]  # of each axis of the value; () is new


class Made(NamedTuple):
    """What was made of parameters and constants alone, and of no input."""

    leaves: tuple[tuple[int, str], ...] = ()  # and by what operation of each


CONSTANT = Made()
INPUT = None
Value: TypeAlias = View | Made | None

_SAME = {
    *("convert_element_type", "copy", "copy_p", "name", "stop_gradient"),
    *("optimization_barrier", "sharding_constraint", "device_put"),
    *("reduce_precision", "pvary", "mesh_cast", "reshard", "layout_constraint"),
}


class _Walk:
    def __init__(self, leaves: list[Leaf]) -> None:
        self.leaves = leaves
        self.uses: dict[tuple[int, Any, Any, Any], Fraction] = {}
        self.multiply_adds: dict[int, Any] = {}
        self.missed: dict[int, str] = {}  # multiplied after something else
        self.read: dict[int, set[str]] = {}  # by what, with inputs

    def found(self) -> Products:
        uses = [
            Use(self.leaves[i].path, over, out, batch, max(1, round(many)))
            for (i, over, out, batch), many in sorted(self.uses.items())
        ]
        used = {i for i, *_ in self.uses}
        missed = {}
        for i, leaf in enumerate(self.leaves):
            if not leaf.floating or len(leaf.shape) < 2:
                continue
            if i in self.missed:
                missed[leaf.path] = self.missed[i]
            elif i not in used:
                by = self.read.get(i, set())
                if by != {"add"}:  # else it is a bias
                    names = ", ".join(sorted(by))
                    missed[leaf.path] = f"read by {names}" if by else "not used"
        return Products(tuple(uses), missed)

    def closed(
        self, program: Any, inputs: Sequence[Value], times: int
    ) -> list[Value]:
        """The outputs of a program that is carried out so many times."""

        def equation(eqn: Any, ins: list[Value]) -> list[Value]:
            rule = _RULES.get(eqn.primitive.name, _by_record)
            return rule(self, eqn, ins, times)

        return interpret(program, inputs, lambda x: CONSTANT, equation)

    def use(
        self, view: View, over: Any, out: Any, batch: Any, times: int
    ) -> None:
        """Registers a product over some axes of the view's value."""
        over, out, batch = (
            {k for axis in axes for part, _ in view.axes[axis] for k in part}
            for axes in (over, out, batch)
        )
        leaf = self.leaves[view.leaf]
        here = {k for parts in view.axes for part, _ in parts for k in part}
        batch |= set(range(len(leaf.shape))) - here  # one of a stack
        both = sorted((over & out) | (batch & (over | out)))
        if both:
            self.missed[view.leaf] = (
                f"axis {both[0]} is cut in parts, multiplied in different ways"
            )
            return
        over, out, batch = (tuple(sorted(x)) for x in (over, out, batch))
        key = view.leaf, over, out, batch
        size = math.prod(n for parts in view.axes for part, n in parts if part)
        part = Fraction(times * size, max(1, math.prod(leaf.shape)))
        self.uses[key] = self.uses.get(key, Fraction(0)) + part

    def multiplied(self, value: Value) -> bool:
        """Whether it is a parameter as it is; others are noted."""
        if isinstance(value, Made):
            for leaf, name in value.leaves:
                self.missed.setdefault(leaf, f"multiplied after {name}")
        return isinstance(value, View)

    def rest(self, view: View, *taken: Sequence[int]) -> list[int]:
        """Axes of the value that are not taken, and hold a part of the leaf."""
        used = {axis for axes in taken for axis in axes}
        return [k for k in range(len(view.axes)) if k not in used]


Rule: TypeAlias = Callable[[_Walk, Any, list[Value], int], list[Value]]
_RULES: dict[str, Rule] = {}


def _rule(*names: str) -> Callable[[Rule], Rule]:
    def register(fn: Rule) -> Rule:
        _RULES.update(dict.fromkeys(names, fn))
        return fn

    return register


def _other(walk: _Walk, eqn: Any, ins: list[Value], times: int) -> list[Value]:
    """Arithmetic: parameters are no longer what they were."""
    del times
    return [_mixed(walk, eqn.primitive.name, ins)] * len(eqn.outvars)


def _mixed(walk: _Walk, name: str, ins: Sequence[Value]) -> Value:
    by: dict[int, str] = {}
    for x in ins:
        if isinstance(x, Made):
            by |= {leaf: why for leaf, why in x.leaves if leaf not in by}
    by |= {x.leaf: name for x in ins if isinstance(x, View)}
    if any(x is INPUT for x in ins):
        for leaf in by:
            walk.read.setdefault(leaf, set()).add(name)
        return INPUT
    return Made(tuple(sorted(by.items())))


@_rule(*_SAME)
def _same(walk: _Walk, eqn: Any, ins: list[Value], times: int) -> list[Value]:
    del walk, eqn, times
    return ins


def _by_record(
    walk: _Walk, eqn: Any, ins: list[Value], times: int
) -> list[Value]:
    """Products are uses; what is moved stays a view."""
    x, record = ins[0] if ins else INPUT, record_of(eqn)
    if isinstance(record, Axes):
        if record.form == PRODUCT:
            return _product(walk, eqn, ins, record, times)
        if record.form == VIEW and isinstance(x, View):
            axes = (x.axes[p[0][1]] if p else () for p in record.outs[0])
            return [x._replace(axes=tuple(axes))]
    if isinstance(record, Moves) and len(ins) == 1 and isinstance(x, View):
        return _parts(eqn, x, record)
    return _other(walk, eqn, ins, times)


def _parts(eqn: Any, x: View, moves: Moves) -> list[Value]:
    """Some positions of a view."""
    outs: list[Value] = []
    old, lost = eqn.invars[0].aval.shape, moves.dropped
    for taken in moves.outs:
        new = [len(taken.get(k, range(n))) for k, n in enumerate(old)]
        one = _cut(x, old, new)
        kept = (axis for k, axis in enumerate(one.axes) if k != lost)
        outs.append(one._replace(axes=tuple(kept)))
    return outs


def _product(
    walk: _Walk, eqn: Any, ins: list[Value], axes: Axes, times: int
) -> list[Value]:
    """An axis is contracted, makes outputs, or goes with one of the inputs."""
    if all(x is not INPUT for x in ins[:2]):  # of parameters alone
        return _other(walk, eqn, ins, times)
    outs = [places for places in axes.outs[0] if places]
    for i, x in enumerate(ins[:2]):
        if walk.multiplied(x):
            assert isinstance(x, View)
            over = [k for p in axes.summed for j, k in p if j == i]
            out = [k for p in outs for j, k in p if j == i and len(p) == 1]
            rest = walk.rest(x, over, out)
            if eqn.primitive.name == "conv_general_dilated":
                rest = []  # windows
            walk.use(x, over, out, rest, times)
            cost = times * _multiply_adds(eqn, axes, i)
            before = walk.multiply_adds.get(x.leaf, 0)
            walk.multiply_adds[x.leaf] = before + cost
    return [INPUT]


def _multiply_adds(eqn: Any, axes: Axes, side: int) -> Any:
    """Those of one product: each output sums over what is contracted.

    An integer, or a symbol where sizes of arguments are.
    """
    outputs = math.prod(eqn.outvars[0].aval.shape)
    if eqn.primitive.name == "conv_general_dilated":
        kernel = eqn.invars[1].aval.shape
        features = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
        return outputs * (math.prod(kernel) // max(features, 1))
    shape = eqn.invars[side].aval.shape
    over = (shape[k] for p in axes.summed for j, k in p if j == side)
    return outputs * math.prod(over)


@_rule("conv_general_dilated")
def _conv(walk: _Walk, eqn: Any, ins: list[Value], times: int) -> list[Value]:
    """A parameter is the kernel, and not what it goes over."""
    rule = _by_record if ins[0] is INPUT else _other
    return rule(walk, eqn, ins, times)


@_rule("reshape")
def _reshape(
    walk: _Walk, eqn: Any, ins: list[Value], times: int
) -> list[Value]:
    x, shape = ins[0], eqn.outvars[0].aval.shape
    old = eqn.invars[0].aval.shape
    if not isinstance(x, View) or eqn.params.get("dimensions") is not None:
        return _other(walk, eqn, ins, times)
    if 0 in old:
        return _other(walk, eqn, ins, times)
    axes: list[tuple[Part, ...]] = [()] * len(shape)
    for before, after in groups(old, shape):
        if len(before) == len(after) == 1:
            axes[after[0]] = x.axes[before[0]]
            continue
        # An axis of size 1 that goes is one of a stack.
        parts = [p for k in before for p in _filled(x.axes[k], old[k])]
        parts = [part for part in parts if part[1] > 1]
        for k, taken in zip(
            after, _dealt(parts, [shape[k] for k in after]), strict=True
        ):
            axes[k] = taken
    return [x._replace(axes=tuple(axes))]


def _filled(parts: tuple[Part, ...], size: int) -> tuple[Part, ...]:
    """Parts whose sizes multiply to that of the axis."""
    return parts if parts or size == 1 else (((), size),)


def _dealt(
    parts: list[Part], sizes: Sequence[int]
) -> Iterator[tuple[Part, ...]]:
    """The parts in turn, so many positions of them for each axis."""
    left = list(parts)
    for size in sizes:
        taken: list[Part] = []
        while size > 1 and left:
            axes, n = left.pop(0)
            if size % n == 0:
                taken.append((axes, n))
                size //= n
            elif n % size == 0:  # an axis that is split
                taken.append((axes, size))
                left.insert(0, (axes, n // size))
                size = 1
            else:  # neither: both axes hold a part of both
                more, m = left.pop(0) if left else ((), 1)
                left.insert(0, (tuple({*axes, *more}), n * m))
        yield tuple(taken)


@_rule("dynamic_slice")
def _slice(walk: _Walk, eqn: Any, ins: list[Value], times: int) -> list[Value]:
    x, shape = ins[0], eqn.outvars[0].aval.shape
    if not isinstance(x, View):
        return _other(walk, eqn, ins, times)
    return [_cut(x, eqn.invars[0].aval.shape, shape)]


def _cut(x: View, old: Sequence[int], new: Sequence[int]) -> View:
    axes = []
    for parts, n, m in zip(x.axes, old, new, strict=True):
        if n == m:
            axes.append(parts)
            continue
        merged = tuple(sorted({k for part, _ in parts for k in part}))
        axes.append(((merged, m),) if merged else ())
    return x._replace(axes=tuple(axes))


@_rule("gather")
def _gather(walk: _Walk, eqn: Any, ins: list[Value], times: int) -> list[Value]:
    """One layer of a stack is a view; what is looked up for inputs is not."""
    x, p = ins[0], eqn.params["dimension_numbers"]
    indices = eqn.invars[1].aval.shape[:-1]
    if not isinstance(x, View) or math.prod(indices) != 1:
        return _other(walk, eqn, ins, times)
    sizes = eqn.params["slice_sizes"]
    gone = (*p.collapsed_slice_dims, *p.operand_batching_dims)
    part = _cut(x, eqn.invars[0].aval.shape, sizes)
    kept = walk.rest(part, gone)
    axes: list[tuple[Part, ...]] = [()] * len(eqn.outvars[0].aval.shape)
    for axis, k in zip(p.offset_dims, kept, strict=True):
        axes[axis] = part.axes[k]
    return [x._replace(axes=tuple(axes))]


@_rule(*CALLS)
def _call(walk: _Walk, eqn: Any, ins: list[Value], times: int) -> list[Value]:
    return walk.closed(held(eqn), ins, times)


@_rule("custom_linear_solve")
def _solve(walk: _Walk, eqn: Any, ins: list[Value], times: int) -> list[Value]:
    linear = read_solve(eqn)
    _, fixed, _, right = linear.inputs(ins)
    return walk.closed(linear.solve, fixed + right, times)


@_rule("scan")
def _scan(walk: _Walk, eqn: Any, ins: list[Value], times: int) -> list[Value]:
    loop = read_scan(eqn)
    fixed, carry, stacks = loop.inputs(ins)
    for x in carry:
        _mixed(walk, "a carry of scan", [x, INPUT])
    layers = [
        x._replace(axes=x.axes[1:]) if isinstance(x, View) else x
        for x in stacks
    ]
    inside = [*fixed, *[INPUT] * len(carry), *layers]
    outs = walk.closed(loop.body, inside, times * loop.length)
    return [_mixed(walk, "scan", [x]) for x in outs]


@_rule("while")
def _while(walk: _Walk, eqn: Any, ins: list[Value], times: int) -> list[Value]:
    loop = read_while(eqn)
    test, body, carry = loop.inputs(ins)
    for x in carry:
        _mixed(walk, "a carry of while", [x, INPUT])
    inside: list[Value] = [INPUT] * len(carry)
    walk.closed(loop.test, [*test, *inside], times)
    walk.closed(loop.body, [*body, *inside], times)
    return inside


@_rule("cond")
def _cond(walk: _Walk, eqn: Any, ins: list[Value], times: int) -> list[Value]:
    runs = [walk.closed(b, ins[1:], times) for b in read_cond(eqn)]
    outs = []
    for values in zip(*runs, strict=True):
        same = all(x == values[0] for x in values)
        outs.append(
            values[0] if same else _mixed(walk, "cond", [*values, INPUT])
        )
    return outs
