"""What other formats are made of: a flat program with its parameters inside."""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jprune._core.arrays import abstract_array
from jprune._core.hosts import check_here
from jprune._core.programs import bound, check_call
from jprune._core.trees import path_name
from jprune._core.typing import Tree
from jprune.compaction import Certificate
from jprune.compaction.removal.frozen import inlined
from jprune.export import case
from jprune.export.program import as_given
from jprune.export.trees import plain
from jprune.jaxprs.versions import as_function

Run = Callable[[Sequence[np.ndarray]], Sequence[Any]]


class Flat(NamedTuple):
    """A function of arrays alone, traced: nothing of ``fn`` is called again.

    A converter that patches ``jax.numpy`` while it traces would leave its patches
    in the caches of what it calls.
    """

    call: Callable[..., Any]
    shapes: list[Any]  # of its inputs
    inputs: list[str]
    outputs: list[str]
    direct: Callable[..., Any]  # the function itself, of the same inputs


def flattened(
    call: str, fn: Any, params: Tree, args: tuple[Any, ...], static: Any
) -> Flat:
    """``fn`` at its parameters as a function of the leaves of ``args``.

    Raises:
      ValueError: ``fn`` is no function, or something has no values.
    """
    check_call(call, fn, params, args, concrete=True)
    check_here(call, params)
    fn = bound(call, fn, static)
    specs = jax.tree.map(abstract_array, args)
    shapes, structure = jax.tree.flatten(tuple(map(plain, specs)))

    def direct(*leaves: Any) -> Any:
        given = jax.tree.unflatten(structure, leaves)
        return plain(fn(params, *as_given(given, specs)))

    closed, output = inlined(direct, tuple(shapes))
    names = jax.tree.unflatten(structure, shapes)
    return Flat(
        as_function(closed),
        shapes,
        _names("args", names),
        _names("output", output),
        direct,
    )


def _names(word: str, tree: Tree) -> list[str]:
    """Names of leaves, of letters, digits and ``_``."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    found = []
    for i, (path, _) in enumerate(leaves):
        end = path_name(path) if path else str(i)
        found.append(f"{word}_{re.sub(r'[^A-Za-z0-9]+', '_', end)}")
    if len({*found}) < len(found):
        return [f"{word}_{i}" for i in range(len(found))]
    return found


def verified(
    call: str,
    flat: Flat,
    args: tuple[Any, ...],
    run: Run,
    tolerance: float | None,
) -> Certificate:
    """Runs ``fn`` and the other runtime on inputs that are drawn.

    Raises:
      ValueError: They are further apart than is tolerated; or the runtime fails.
    """
    refused = ""
    for drawn in case.cases(tuple(map(plain, args))):
        inputs = case.draw(drawn)
        try:
            wanted = jax.jit(flat.direct)(*inputs)
        except (TypeError, ValueError) as error:
            refused = str(error)  # sizes that the symbols can't have
            continue
        try:
            found = run([np.asarray(x) for x in inputs])
        except Exception as error:  # of another library
            raise ValueError(
                f"`{call}`: the converted program doesn't run: {error}"
            ) from error
        return case.check(
            call,
            case.sample(wanted),
            case.sample([np.asarray(x) for x in found]),
            tolerance,
        )
    raise ValueError(f"`{call}`: no sizes were found for symbols: {refused}")
