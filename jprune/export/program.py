"""Functions as StableHLO: traced once, and run without their source."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from jprune._core.arrays import abstract_array
from jprune._core.trees import is_hole, leaves_with_path, rebuild
from jprune._core.typing import Tree
from jprune.compaction.removal.frozen import inlined
from jprune.export.extras import needed
from jprune.export.trees import flat, plain
from jprune.jaxprs.versions import as_function, opened, with_constants

LARGE = 2**16  # bytes; larger constants are arrays of their own


class Program(NamedTuple):
    """A function of flat parameters, constants and plain arguments."""

    exported: export.Exported
    constants: dict[str, Any]


def trace(
    call: str,
    fn: Any,
    params: Tree,
    args: tuple[Any, ...],
    platforms: Sequence[str] | None,
) -> Program:
    """``fn`` as a program of ``(flat params, constants, *plain args)``.

    Raises:
      ValueError: JAX can't export it; its reason is in the message.
    """
    shapes, specs = jax.tree.map(abstract_array, (flat(params), args))
    inputs = (shapes, *map(plain, specs))
    try:
        closed, output = inlined(
            lambda arrays, *given: plain(
                fn(_nested(arrays, params), *as_given(given, specs))
            ),
            inputs,
        )
        constants = {
            str(i): x for i, x in enumerate(opened(closed)[1]) if _is_large(x)
        }

        def program(params: Any, constants: Any, *args: Any) -> Any:
            held = [
                constants.get(str(i), x)
                for i, x in enumerate(opened(closed)[1])
            ]
            run = as_function(with_constants(closed, held))
            outputs = run(*jax.tree.leaves((params, *args)))
            return jax.tree.unflatten(jax.tree.structure(output), outputs)

        with _without_places():
            exported = export.export(jax.jit(program), platforms=platforms)(
                shapes, jax.tree.map(abstract_array, constants), *inputs[1:]
            )
    except (NotImplementedError, TypeError, ValueError) as error:
        raise ValueError(f"`{call}`: JAX can't export fn: {error}") from error
    return Program(exported, constants)


def _nested(arrays: dict[str, Any], params: Tree) -> Tree:
    names = iter(flat(params))
    return rebuild(
        params,
        [
            x if is_hole(x) else arrays[next(names)]
            for _, x in leaves_with_path(params)
        ],
    )


def as_given(plain_args: Any, specs: Tree) -> Any:
    """Arguments in the trees that the function knows."""
    numbers = jax.tree.unflatten(
        jax.tree.structure(specs), range(len(jax.tree.leaves(specs)))
    )
    order = jax.tree.leaves(tuple(map(plain, numbers)))
    leaves = dict(zip(order, jax.tree.leaves(plain_args), strict=True))
    return jax.tree.unflatten(
        jax.tree.structure(specs), [leaves[i] for i in range(len(leaves))]
    )


def _is_large(x: Any) -> bool:
    if jnp.issubdtype(x.dtype, jax.dtypes.extended):
        return False
    return bool(np.size(x) * x.dtype.itemsize > LARGE)


def to_bytes(call: str, exported: export.Exported, vjp: bool) -> bytes:
    """The program as bytes, and its derivative if it is asked for."""
    needed(call, "flatbuffers")
    with _without_places():  # the derivative is lowered here
        return bytes(exported.serialize(vjp_order=int(vjp)))


@contextmanager
def _without_places() -> Iterator[None]:
    """No lines of source in a program: paths say where its author works."""
    option = "jax_traceback_in_locations_limit"
    limit = getattr(jax.config, option)
    jax.config.update(option, 0)
    try:
        yield
    finally:
        jax.config.update(option, limit)


def from_bytes(place: str, data: bytes, written_by: str) -> export.Exported:
    """The program of some bytes.

    Raises:
      ValueError: It is none, is of a version that this JAX does not read, or calls
        back into Python.
    """
    needed("load(path)", "flatbuffers")
    try:
        exported = export.deserialize(bytearray(data))
        text = exported.mlir_module()
    except Exception as error:  # the bytes may be anything
        raise ValueError(
            f"{place}: JAX {jax.__version__} can't read the program, which JAX "
            f"{written_by} wrote: {error!r}."
        ) from None
    for target in re.findall(r"custom_call @([\w.\"$]+)", text):
        if "callback" in target:
            raise ValueError(
                f"{place}: the program calls back into Python, by {target!r}; "
                "nothing is run that a file brings but XLA's own operations."
            )
    return exported
