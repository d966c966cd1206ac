"""A program is tried before it is written."""

from typing import Any

import jax
from jax import export

from jprune._core.typing import Tree
from jprune.compaction import Certificate
from jprune.export import case, program
from jprune.export.program import Program
from jprune.export.trees import flat, plain


def tried(
    call: str, fn: Any, params: Tree, args: tuple[Any, ...], made: Program
) -> tuple[list[case.Drawn], list[Any]]:
    """Inputs that the program takes, and what ``fn`` makes of them."""
    here = export.default_export_platform()
    if here not in made.exported.platforms:
        raise ValueError(
            f"`{call}`: `platforms={made.exported.platforms}` must hold "
            f"{here!r}, where this process runs: the program is tried once."
        )
    leaves, structure = jax.tree.flatten(tuple(map(plain, args)))
    run, refused = jax.jit(made.exported.call), ""
    for drawn in case.cases(leaves):
        given = jax.tree.unflatten(structure, case.draw(drawn))
        try:
            found = run(flat(params), made.constants, *given)
        except ValueError as error:
            refused = str(error)
            continue
        given = program.as_given(given, args)
        wanted = case.sample(plain(jax.jit(fn)(params, *given)))
        case.check(call, wanted, case.sample(found))
        return drawn, wanted
    raise ValueError(
        f"`{call}`: no sizes were found for the symbols of the arguments: "
        f"{refused}"
    )


def certified(small: Any, args: tuple[Any, ...]) -> Certificate | None:
    """On the arguments, or on some that are drawn where they have no values."""
    leaves, structure = jax.tree.flatten(args)
    if not any(isinstance(x, jax.ShapeDtypeStruct) for x in leaves):
        return small.certify(*args)  # type: ignore[no-any-return]
    for drawn in case.cases(args):
        given = jax.tree.unflatten(structure, case.draw(drawn))
        try:
            return small.certify(*given)  # type: ignore[no-any-return]
        except (TypeError, ValueError):
            continue  # sizes that the symbols can't have
    return None
