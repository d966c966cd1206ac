"""A program gone through, and its parameters as it sees them."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from jprune._core.trees import (
    is_floating,
    is_hole,
    leaves_with_path,
    unique_names,
)
from jprune._core.typing import Tree
from jprune.jaxprs.versions import abstract_array, is_literal, opened

V = TypeVar("V")


class Leaf(NamedTuple):
    """A parameter as the program sees it."""

    path: str
    shape: tuple[int, ...]
    dtype: Any
    floating: bool


def leaves_of(params: Tree) -> list[Leaf]:
    """Every array of ``params``, holes left out."""
    leaves = leaves_with_path(params)
    names = unique_names([path for path, _ in leaves])
    return [
        Leaf(name, np.shape(x), _dtype(x), is_floating(x))
        for name, (_, x) in zip(names, leaves, strict=True)
        if not is_hole(x)
    ]


def _dtype(leaf: Any) -> Any:
    return leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype


def abstract(tree: Tree) -> Tree:
    """Shapes and dtypes in place of arrays."""
    return jax.tree.map(
        lambda x: abstract_array(x) if hasattr(x, "dtype") else x, tree
    )


def interpret(
    program: Any,
    inputs: Sequence[V],
    constant: Callable[[Any], V],
    equation: Callable[[Any, list[V]], list[V]],
) -> list[V]:
    """The outputs of a program whose values are whatever ``equation`` makes.

    Args:
      program: A jaxpr, closed or open; constants come before other inputs.
      inputs: The values of its inputs.
      constant: From an array that stands in the program to a value.
      equation: From an equation and the values of its inputs to those of its
        outputs.
    """
    jaxpr, consts = opened(program)
    names = [*jaxpr.constvars, *jaxpr.invars]
    given = [*map(constant, consts), *inputs]
    env: dict[Any, V] = dict(zip(names, given, strict=True))

    def read(atom: Any) -> V:
        return constant(atom.val) if is_literal(atom) else env[atom]

    ends = _last_uses(jaxpr)
    for i, eqn in enumerate(jaxpr.eqns):
        outs = equation(eqn, [read(atom) for atom in eqn.invars])
        env.update(zip(eqn.outvars, outs, strict=True))
        for name in ends.get(i, ()):  # values may be large arrays
            env.pop(name, None)
    return [read(atom) for atom in jaxpr.outvars]


def _last_uses(jaxpr: Any) -> dict[int, list[Any]]:
    """The names that no equation after this one reads, nor the caller."""
    last = {
        name: i
        for i, eqn in enumerate(jaxpr.eqns)
        for name in (*eqn.invars, *eqn.outvars)
        if not is_literal(name)
    }
    for name in jaxpr.outvars:
        if not is_literal(name):
            last.pop(name, None)
    ends: dict[int, list[Any]] = {}
    for name, i in last.items():
        ends.setdefault(i, []).append(name)
    return ends
