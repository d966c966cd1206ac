"""A program at fixed shapes, without what it was made of."""

from typing import Any

import jax
import numpy as np

from jprune._core.arrays import abstract_array
from jprune._core.programs import check_call
from jprune._core.trees import path_name
from jprune._core.typing import Tree
from jprune.jaxprs.program import interpret
from jprune.jaxprs.versions import INLINED, as_function, evaluate, held


def frozen(call: str, fn: Any, params: Tree, args: tuple[Any, ...]) -> Any:
    """``fn`` as a jitted program of arrays of these shapes, on behalf of ``call``.

    Raises:
      ValueError: A size is a symbol; when called, inputs are others.
    """
    check_call(call, fn, params, args, concrete=False)
    specs = jax.tree.map(abstract_array, (params, *args))
    for i, arg in enumerate(specs[1:]):
        for path, x in jax.tree_util.tree_flatten_with_path(arg)[0]:
            if not all(isinstance(n, int | np.integer) for n in x.shape):
                raise ValueError(
                    f"`{call}(*args)`: args[{i}], {path_name(path)!r}, must have "
                    f"sizes that are numbers, got the shape {x.shape}; "
                    "`jprune.export.save` keeps symbols."
                )
    closed, output = inlined(fn, specs)
    known = jax.tree_util.tree_flatten_with_path(specs)[0]
    structure: Any = jax.tree.structure(specs)
    outputs = jax.tree.structure(output)
    run = as_function(closed)

    def program(params: Tree, *args: Any) -> Any:
        found = (params, *args)
        if jax.tree.structure(found) != structure:
            raise ValueError(
                f"`{call}`: the function takes {structure}, got "
                f"{jax.tree.structure(found)}."
            )
        leaves = jax.tree.leaves(found)
        for (path, spec), x in zip(known, leaves, strict=True):
            given = abstract_array(x)
            if (given.shape, given.dtype) != (spec.shape, spec.dtype):
                raise ValueError(
                    f"`{call}`: {_place(path)} must be {spec.dtype} of shape "
                    f"{spec.shape}, got {given.dtype} of shape {given.shape}; "
                    "call `freeze` for each shape."
                )
        return jax.tree.unflatten(outputs, run(*leaves))

    return jax.jit(program)


def inlined(fn: Any, specs: tuple[Any, ...]) -> tuple[Any, Tree]:
    """The program of ``fn``, without calls of ``jit``, and its output's shapes.

    Constants that calls hold become those of the program.
    """
    closed, output = jax.make_jaxpr(fn, return_shape=True)(*specs)

    def run(*leaves: Any) -> Any:
        return interpret(closed, leaves, _itself, _equation)

    return jax.make_jaxpr(run)(*jax.tree.leaves(specs)), output


def _itself(x: Any) -> Any:
    return x


def _equation(eqn: Any, inputs: list[Any]) -> list[Any]:
    if eqn.primitive.name in INLINED:
        return interpret(held(eqn), inputs, _itself, _equation)
    return evaluate(eqn, inputs)


def _place(path: Any) -> str:
    """Of ``(params, *args)``, as the caller has it."""
    i, rest = path[0].idx, path[1:]
    name = "params" if not i else f"args[{i - 1}]"
    return f"{name}, {path_name(rest)!r}," if rest else name
