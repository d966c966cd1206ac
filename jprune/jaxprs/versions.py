"""All that depends on the version of JAX: what equations hold, how one is run.

The parameters of an equation are JAX's own and change with its versions. What
shapes tell is read off shapes, and nothing else in jprune looks into calls and
loops by itself. Seen so far: ``scan`` counts its inputs by ``num_consts`` and
``num_carry`` in JAX 0.10, and has trees, ``ft_in`` and ``ft_out``, in 0.12;
programs are closed there (their constants are a part of them), some are not in
0.10; an abstract array of float64 warns in 0.12 while x64 is off.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import jax
from jax.extend import core

from jprune._core.arrays import abstract_array as abstract_array

T = TypeVar("T")

# The names that calls have had.
INLINED = ("jit", "pjit", "closed_call", "core_call")
CUSTOM_JVP = ("custom_jvp_call",)
CUSTOM_VJP = ("custom_vjp_call",)
REMAT = ("remat2", "checkpoint")
CALLS = frozenset((*INLINED, *CUSTOM_JVP, *CUSTOM_VJP, *REMAT))


def is_literal(atom: Any) -> bool:
    """Whether an input of an equation is a number that stands in it."""
    return isinstance(atom, core.Literal)


def opened(program: Any) -> tuple[Any, Sequence[Any]]:
    """A program with its constants as its first inputs, and those constants."""
    return getattr(program, "jaxpr", program), getattr(program, "consts", ())


def as_function(program: Any) -> Any:
    """A closed program as a function of its flat inputs, which returns a list."""
    return core.jaxpr_as_fun(program)


def with_constants(program: Any, constants: Sequence[Any]) -> Any:
    """The same program with other constants."""
    return core.ClosedJaxpr(opened(program)[0], list(constants))


def held(eqn: Any) -> Any:
    """The program that a call holds, whatever the parameter is called."""
    return next(p for p in eqn.params.values() if hasattr(p, "eqns"))


class Scan(NamedTuple):
    """What a ``scan`` does: ``fixed`` inputs, then ``carry``, then stacks."""

    body: Any
    fixed: int
    carry: int
    length: int
    reverse: bool
    unroll: Any

    def inputs(self, values: Sequence[T]) -> tuple[list[T], list[T], list[T]]:
        """What is fixed, what is carried, what is gone through."""
        first, second = self.fixed, self.fixed + self.carry
        return (
            list(values[:first]),
            list(values[first:second]),
            list(values[second:]),
        )

    def outputs(self, values: Sequence[T]) -> tuple[list[T], list[T]]:
        """What is carried, what is stacked."""
        return list(values[: self.carry]), list(values[self.carry :])


def read_scan(eqn: Any) -> Scan:
    """A scan by the shapes that its body has: entries lack the first axis."""
    body, p = held(eqn), eqn.params
    inside, _ = opened(body)
    stacks = _larger(eqn.invars, inside.invars)
    carry = len(eqn.outvars) - _larger(eqn.outvars, inside.outvars)
    fixed = len(eqn.invars) - carry - stacks
    return Scan(body, fixed, carry, p["length"], p["reverse"], p["unroll"])


def _larger(outside: Sequence[Any], inside: Sequence[Any]) -> int:
    """How many have an axis more outside."""
    pairs = zip(outside, inside, strict=True)
    return sum(_ndim(a) > _ndim(b) for a, b in pairs)


def _ndim(atom: Any) -> int:
    return len(getattr(atom.aval, "shape", ()))


class While(NamedTuple):
    """What a ``while`` does: inputs of the test, of the body, then the carry."""

    test: Any
    body: Any
    of_test: int
    of_body: int

    def inputs(self, values: Sequence[T]) -> tuple[list[T], list[T], list[T]]:
        """What the test reads alone, what the body does, what is carried."""
        first, second = self.of_test, self.of_test + self.of_body
        return (
            list(values[:first]),
            list(values[first:second]),
            list(values[second:]),
        )


def read_while(eqn: Any) -> While:
    """A loop by its programs: both take what it returns after their own."""
    test, body = eqn.params["cond_jaxpr"], eqn.params["body_jaxpr"]
    carry = len(eqn.outvars)
    of_test, of_body = (len(opened(p)[0].invars) - carry for p in (test, body))
    return While(test, body, of_test, of_body)


class Solve(NamedTuple):
    """A linear solve, and the constants that each of its programs reads first.

    ``solve`` finds of what ``matvec`` makes the right side; ``transposed`` does for
    the transpose, and may be None.
    """

    matvec: Any
    solve: Any
    transposed: Any
    lengths: tuple[int, ...]  # of `vecmat` too, which nobody needs

    def inputs(
        self, values: Sequence[T]
    ) -> tuple[list[T], list[T], list[T], list[T]]:
        """The constants of the three programs, and the right side."""
        ends = [0, *itertools.accumulate(self.lengths)]
        matvec, _, solve, transposed = (
            list(values[a:b]) for a, b in itertools.pairwise(ends)
        )
        return matvec, solve, transposed, list(values[ends[-1] :])


def read_solve(eqn: Any) -> Solve:
    """A ``custom_linear_solve``, whose programs and their constants go together."""
    programs, lengths = eqn.params["jaxprs"], eqn.params["const_lengths"]
    return Solve(
        programs.matvec,
        programs.solve,
        programs.transpose_solve,
        tuple(lengths),
    )


def read_cond(eqn: Any) -> Sequence[Any]:
    """The programs of which a ``cond`` runs one; its first input says which."""
    return tuple(eqn.params["branches"])


def applies(eqn: Any) -> bool:
    """Whether a ``scatter`` computes what it writes: ``x.at[i].apply(fn)``."""
    return eqn.params["update_jaxpr"] is not None


def bind(eqn: Any, xs: Sequence[Any], **params: Any) -> Any:
    """The primitive of an equation, with some parameters replaced.

    For those that hold no programs; others are carried out by :func:`evaluate`.
    """
    return eqn.primitive.bind(*xs, **{**eqn.params, **params})


def evaluate(eqn: Any, xs: Sequence[Any]) -> list[Any]:
    """One equation as it is, custom rules and all."""
    names = [core.Var(v.aval) for v in eqn.invars]
    outs = [core.Var(v.aval) for v in eqn.outvars]
    one = eqn.replace(invars=names, outvars=outs)
    debug = core.DebugInfo("compact", "compact", None, None)
    jaxpr = core.Jaxpr((), names, outs, [one], eqn.effects, debug_info=debug)
    return list(jax.core.eval_jaxpr(jaxpr, (), *xs))
