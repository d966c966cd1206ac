"""How equations that hold programs are carried out on what is left."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jprune.compaction.removal.rewrite import (
    Mask,
    Rewrite,
    Small,
    Unsupported,
    as_it_is,
    both,
    is_dense,
    rule,
    same,
    tidy,
)
from jprune.jaxprs.versions import (
    CUSTOM_JVP,
    CUSTOM_VJP,
    INLINED,
    REMAT,
    abstract_array,
    evaluate,
    held,
    read_cond,
    read_scan,
    read_solve,
    read_while,
)

Masks = list[tuple[Mask, ...]]
Program = Callable[[list[Small]], list[Small]]


@rule(*INLINED)
def call(rewrite: Rewrite, eqn: Any, ins: list[Small]) -> list[Small]:
    """As if it stood here."""
    if is_dense(ins):
        return as_it_is(rewrite, eqn, ins)
    return rewrite.closed(held(eqn), ins)


@rule(*REMAT)
def remat(rewrite: Rewrite, eqn: Any, ins: list[Small]) -> list[Small]:
    """Computed again when differentiated, by the same policy."""
    if is_dense(ins):
        return as_it_is(rewrite, eqn, ins)
    ins = [v.solid() for v in ins]
    closed = held(eqn)
    run, outs = _on_arrays(lambda vs: rewrite.closed(closed, vs), ins)
    p = eqn.params
    again = jax.checkpoint(
        run, prevent_cse=p["prevent_cse"], policy=p["policy"]
    )
    return _filled(outs, again(*(v.x for v in ins)))


@rule(*CUSTOM_JVP)
def custom_jvp(rewrite: Rewrite, eqn: Any, ins: list[Small]) -> list[Small]:
    """The rule is the dense one, itself carried out on what is left."""
    if is_dense(ins):
        return as_it_is(rewrite, eqn, ins)
    ins = [v.solid() for v in ins]
    closed = held(eqn)
    run, outs = _on_arrays(lambda vs: rewrite.closed(closed, vs), ins)
    real = [k for k, v in enumerate(ins) if _is_real(v.x)]

    def derivative(primals: Sequence[Any], tangents: Sequence[Any]) -> Any:
        def jvp(primals: Sequence[Any], tangents: Sequence[Any]) -> Any:
            def fn(*some: Any) -> Any:
                full = list(primals)
                for k, x in zip(real, some, strict=True):
                    full[k] = x
                return evaluate(eqn, full)

            return jax.jvp(fn, tuple(primals[k] for k in real), tuple(tangents))

        shapes = [abstract_array(v.x, v.shape) for v in ins]
        moves = [shapes[k] for k in real]
        program = jax.make_jaxpr(jvp)(shapes, moves)
        given = [replace(v, x=x) for v, x in zip(ins, primals, strict=True)]
        given += [replace(ins[k], x=tangents[k]) for k in real]
        found = rewrite.closed(program, given)
        wanted = [*outs, *outs]
        cut = [
            rewrite.cut(v.solid(), m).x
            for v, (_, m) in zip(found, wanted, strict=True)
        ]
        return tuple(cut[: len(outs)]), tuple(cut[len(outs) :])

    fn = jax.custom_jvp(run)
    fn.defjvp(derivative)
    return _filled(outs, fn(*(v.x for v in ins)))


@rule(*CUSTOM_VJP)
def custom_vjp(rewrite: Rewrite, eqn: Any, ins: list[Small]) -> list[Small]:
    """The same, from cotangents back to what is left of the inputs."""
    if is_dense(ins):
        return as_it_is(rewrite, eqn, ins)
    ins = [v.solid() for v in ins]
    closed = held(eqn)
    run, outs = _on_arrays(lambda vs: rewrite.closed(closed, vs), ins)
    real = [k for k, v in enumerate(ins) if _is_real(v.x)]

    def backward(primals: Sequence[Any], cotangents: Sequence[Any]) -> Any:
        def vjp(primals: Sequence[Any], cotangents: Sequence[Any]) -> Any:
            def fn(*some: Any) -> Any:
                full = list(primals)
                for k, x in zip(real, some, strict=True):
                    full[k] = x
                return evaluate(eqn, full)

            return jax.vjp(fn, *(primals[k] for k in real))[1](list(cotangents))

        shapes = [abstract_array(v.x, v.shape) for v in ins]
        back = [abstract_array(v.aval) for v in eqn.outvars]
        program = jax.make_jaxpr(vjp)(shapes, back)
        given = [replace(v, x=x) for v, x in zip(ins, primals, strict=True)]
        given += [
            Small(x, v.aval.shape, m)
            for x, v, (_, m) in zip(cotangents, eqn.outvars, outs, strict=True)
        ]
        found = iter(rewrite.closed(program, given))
        return tuple(
            rewrite.cut(next(found).solid(), v.masks).x
            if k in real
            else np.zeros(np.shape(v.x), jax.dtypes.float0)
            for k, v in enumerate(ins)
        )

    fn = jax.custom_vjp(run)
    fn.defvjp(lambda *xs: (run(*xs), xs), backward)
    return _filled(outs, fn(*(v.x for v in ins)))


@rule("cond")
def cond(rewrite: Rewrite, eqn: Any, ins: list[Small]) -> list[Small]:
    """All branches leave the same."""
    if is_dense(ins):
        return as_it_is(rewrite, eqn, ins)
    index, *ins = (v.solid() for v in ins)
    programs: list[Program] = [
        lambda vs, b=b: rewrite.closed(b, vs)  # type: ignore[misc]
        for b in read_cond(eqn)
    ]
    outs = [_on_arrays(program, ins)[1] for program in programs]
    masks = [
        _common(*(m for _, m in several)) for several in zip(*outs, strict=True)
    ]
    branches = [
        _on_arrays(lambda vs, p=p: _cut(rewrite, p(vs), masks), ins)[0]  # type: ignore[misc]
        for p in programs
    ]
    xs = lax.switch(index.x, branches, *(v.x for v in ins))
    shapes = [shape for shape, _ in outs[0]]
    return _filled(list(zip(shapes, masks, strict=True)), xs)


@rule("while")
def while_(rewrite: Rewrite, eqn: Any, ins: list[Small]) -> list[Small]:
    """What goes round keeps its masks."""
    if is_dense(ins):
        return as_it_is(rewrite, eqn, ins)
    loop = read_while(eqn)
    test, fixed, carry = loop.inputs([v.solid() for v in ins])

    def body(carry: list[Small]) -> list[Small]:
        return rewrite.closed(loop.body, fixed + carry)

    carry = _steady(rewrite, body, carry)
    masks = [v.masks for v in carry]

    def going(xs: Sequence[Any]) -> Any:
        now = _put(carry, xs)
        return rewrite.closed(loop.test, test + now)[0].full()

    def step(xs: Sequence[Any]) -> Any:
        return [v.x for v in _cut(rewrite, body(_put(carry, xs)), masks)]

    return _put(carry, lax.while_loop(going, step, [v.x for v in carry]))


@rule("custom_linear_solve")
def solve(rewrite: Rewrite, eqn: Any, ins: list[Small]) -> list[Small]:
    """The same solver, and derivatives by the same matrix."""
    if is_dense(ins):
        return as_it_is(rewrite, eqn, ins)
    linear = read_solve(eqn)
    of_matvec, of_solve, of_transposed, right = linear.inputs(
        [v.solid() for v in ins]
    )

    def found(right: list[Small]) -> list[Small]:
        return rewrite.closed(linear.solve, of_solve + right)

    right = _steady(rewrite, found, right)
    masks = [v.masks for v in right]

    def smaller(program: Any, first: list[Small]) -> Callable[[Any], Any]:
        def run(xs: Sequence[Any]) -> Any:
            outs = rewrite.closed(program, first + _put(right, xs))
            return [v.x for v in _cut(rewrite, outs, masks)]

        return run

    solver = smaller(linear.solve, of_solve)
    transposed = None
    if linear.transposed is not None:
        back = smaller(linear.transposed, of_transposed)
        transposed = lambda _, xs: back(xs)
    xs = lax.custom_linear_solve(
        smaller(linear.matvec, of_matvec),
        [v.x for v in right],
        lambda _, xs: solver(xs),
        transposed,
    )
    return _put(right, xs)


@rule("scan")
def scan(rewrite: Rewrite, eqn: Any, ins: list[Small]) -> list[Small]:
    """One program for all layers, each with positions of its own."""
    if is_dense(ins):
        return as_it_is(rewrite, eqn, ins)
    loop = read_scan(eqn)
    fixed, carry, stacks = loop.inputs([v.solid() for v in ins])
    if any(v.masks[0] is not None for v in stacks):
        raise Unsupported("scan over what has been made smaller")

    def entries(xs: Sequence[Any]) -> list[Small]:
        return [
            Small(x, v.shape[1:], v.masks[1:])
            for v, x in zip(stacks, xs, strict=True)
        ]

    def at(layer: Any) -> Rewrite:
        return rewrite if rewrite.layer is not None else Rewrite(layer)

    def one(carry: list[Small]) -> list[Small]:
        xs = [jnp.zeros(v.sizes[1:], v.x.dtype) for v in stacks]
        now = [*fixed, *carry, *entries(xs)]
        return loop.outputs(at(jnp.int32(0)).closed(loop.body, now))[0]

    carry = _steady(rewrite, one, carry)
    masks = [v.masks for v in carry]
    left: list[tuple[tuple[int, ...], tuple[Mask, ...]]] = []

    def step(xs: Sequence[Any], entry: Any) -> Any:
        here = at(entry[0])
        now = [*fixed, *_put(carry, xs), *entries(entry[1])]
        carried, made = loop.outputs(here.closed(loop.body, now))
        after = _cut(here, carried, masks)
        rest = [v.solid() for v in made]
        left[:] = [(v.shape, v.masks) for v in rest]
        return [v.x for v in after], [v.x for v in rest]

    layers = jnp.arange(loop.length, dtype=jnp.int32)
    xs, ys = lax.scan(
        step,
        [v.x for v in carry],
        (layers, [v.x for v in stacks]),
        length=loop.length,
        reverse=loop.reverse,
        unroll=loop.unroll,
    )
    outs = [
        Small(y, (loop.length, *shape), (None, *masks))
        for y, (shape, masks) in zip(ys, left, strict=True)
    ]
    return _put(carry, xs) + outs


def _on_arrays(
    program: Program, ins: list[Small]
) -> tuple[Callable[..., Any], list[tuple[tuple[int, ...], tuple[Mask, ...]]]]:
    """A program as a function of arrays, and the masks of what it returns."""
    outs: list[tuple[tuple[int, ...], tuple[Mask, ...]]] = []

    def run(*xs: Any) -> tuple[Any, ...]:
        found = [v.solid() for v in program(_put(ins, xs))]
        outs[:] = [(v.shape, v.masks) for v in found]
        return tuple(v.x for v in found)

    jax.eval_shape(run, *(v.x for v in ins))
    return run, list(outs)


def _put(values: list[Small], xs: Sequence[Any]) -> list[Small]:
    return [replace(v, x=x) for v, x in zip(values, xs, strict=True)]


def _filled(outs: list[Any], xs: Sequence[Any]) -> list[Small]:
    return [
        Small(x, shape, tuple(masks))
        for (shape, masks), x in zip(outs, xs, strict=True)
    ]


def _cut(rewrite: Rewrite, values: list[Small], masks: Masks) -> list[Small]:
    return [
        rewrite.cut(v.solid(), m) for v, m in zip(values, masks, strict=True)
    ]


def _common(*several: tuple[Mask, ...]) -> tuple[Mask, ...]:
    """What is left in all."""
    found = list(several[0])
    for masks in several[1:]:
        found = [both(a, b) for a, b in zip(found, masks, strict=True)]
    return tuple(map(tidy, found))


def _steady(rewrite: Rewrite, body: Program, carry: list[Small]) -> list[Small]:
    """A carry cut to what comes back of it."""
    while True:
        outs = _on_arrays(body, carry)[1]
        masks = [
            _common(v.masks, m) for v, (_, m) in zip(carry, outs, strict=True)
        ]
        if all(
            same(a, b)
            for v, m in zip(carry, masks, strict=True)
            for a, b in zip(v.masks, m, strict=True)
        ):
            return carry
        if any(m is not None and len(m) > 1 for some in masks for m in some):
            raise Unsupported(
                "a carry that is smaller in one layer than in another"
            )
        carry = _cut(rewrite, carry, masks)


def _is_real(x: Any) -> bool:
    return bool(jnp.issubdtype(jnp.result_type(x), jnp.inexact))
