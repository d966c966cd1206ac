"""What is refused: files that do not fit each other, arguments that do not fit."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from jprune._core.checks import check_member
from jprune._core.describe import describe
from jprune._core.trees import path_name
from jprune.compaction import Certificate, Plan
from jprune.export import case

FORMAT = "jprune.bundle"
VERSION = 1  # of the format: what is read is this one and all before


def check_about(plan: Any, certificate: Any, vjp: Any) -> None:
    """Refuses what goes beside the program if it is something else."""
    if plan is not None and not isinstance(plan, Plan):
        raise ValueError(
            "`export.save(plan=...)` must be the plan of a compact model, "
            f"`small.plan`, got {describe(plan)}."
        )
    if certificate is not None:
        check_member("export.save", "certificate", certificate, Certificate)
    if not isinstance(vjp, bool):
        raise ValueError(
            f"`export.save(vjp=...)` must be True or False, got {describe(vjp)}."
        )


def check_version(place: str, about: dict[str, Any]) -> None:
    """Refuses other formats, and versions that are not known."""
    found = about.get("format"), about.get("version")
    if found[0] != FORMAT:
        raise ValueError(f"{place}: a format of {found[0]!r}, not {FORMAT!r}.")
    if not isinstance(found[1], int) or not 1 <= found[1] <= VERSION:
        raise ValueError(
            f"{place}: version {found[1]!r} of the format; this jprune reads "
            f"1 to {VERSION}. A newer jprune reads newer files."
        )


def check_plan(
    place: str, plan: Plan | None, params: Mapping[str, Any]
) -> None:
    """Refuses a plan of other parameters."""
    if plan is None:
        return
    wanted = {leaf.path: leaf.smaller for leaf in plan.leaves}
    found = {name: np.shape(x) for name, x in params.items()}
    for name in [*wanted, *found]:
        a, b = wanted.get(name), found.get(name)
        if a != b:
            raise ValueError(
                f"{place} is that of other parameters: {name!r} has shape "
                f"{a or 'none'} there, {b or 'none'} here."
            )


def check_arrays(
    place: str, wanted: Mapping[str, Any], found: Mapping[str, Any]
) -> None:
    """Refuses arrays that are not those of the program."""
    for name in [*wanted, *found]:
        a, b = (
            None if x is None else f"{_dtype(x)} of shape {np.shape(x)}"
            for x in (wanted.get(name), found.get(name))
        )
        if a != b:
            raise ValueError(
                f"{place}: {name!r} must be {a or 'missing'}, as the program "
                f"says, got {b or 'none'}."
            )


def _dtype(x: Any) -> Any:
    return jax.dtypes.canonicalize_dtype(
        jnp.result_type(x) if not hasattr(x, "dtype") else x.dtype,
        allow_extended_dtype=True,
    )


def check_case(
    place: str, exported: export.Exported, drawn: Sequence[case.Drawn]
) -> None:
    """Refuses inputs to try that the program does not take."""
    (_, _, *args), _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
    known = jax.tree.leaves(args)
    if len(known) != len(drawn):
        raise ValueError(
            f"{place}: {len(drawn)} inputs, the program has {len(known)}."
        )
    most = 10**6
    for i, (aval, spec) in enumerate(zip(known, drawn, strict=True)):
        if jnp.issubdtype(aval.dtype, jax.dtypes.extended):
            continue
        fits = len(aval.shape) == len(spec.shape) and all(
            a == b if isinstance(a, int) else 0 <= b <= most
            for a, b in zip(aval.shape, spec.shape, strict=True)
        )
        if not fits or str(aval.dtype) != spec.dtype or spec.low > spec.high:
            raise ValueError(
                f"{place}: input {i} is {aval.dtype} of shape {aval.shape} in "
                f"the program, got {spec}."
            )


def check_inputs(exported: export.Exported, inputs: Any) -> None:
    """Refuses what the program can't take, by the names of the caller."""
    wanted = jax.tree.unflatten(exported.in_tree, exported.in_avals)[0]
    call = "`bundle.fn(params, *args)`"
    names = ["params", "", *(f"args[{i}]" for i in range(len(inputs) - 2))]
    if len(wanted) != len(inputs):
        raise ValueError(
            f"{call} takes {len(wanted) - 2} arguments beside the parameters, "
            f"got {len(inputs) - 2}."
        )
    for name, a, b in zip(names, wanted, inputs, strict=True):
        one: Any = jax.tree.structure(a)
        if one != jax.tree.structure(b):
            raise ValueError(
                f"{call}: {name} must be {_written(a)}, got {_written(b)}."
            )
        pairs = zip(
            jax.tree_util.tree_flatten_with_path(a)[0],
            jax.tree.leaves(b),
            strict=True,
        )
        for (path, aval), x in pairs:
            if _dtype(x) != aval.dtype or not _fits(aval.shape, np.shape(x)):
                place = f"{name}, {path_name(path)!r}," if path else name
                raise ValueError(
                    f"{call}: {place} must be {aval.dtype} of shape "
                    f"{aval.shape}, got {_dtype(x)} of shape {np.shape(x)}."
                )


def _fits(wanted: Any, shape: Any) -> bool:
    """Sizes that are symbols JAX looks at itself."""
    return len(wanted) == len(shape) and all(
        a == b or not isinstance(a, int)
        for a, b in zip(wanted, shape, strict=True)
    )


def _written(tree: Any) -> str:
    paths = [
        path_name(path)
        for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]
    ]
    kind = type(tree).__name__
    if len(paths) > 6:
        paths = [*paths[:5], f"{len(paths) - 5} more"]
    return f"a `{kind}` with the leaves {', '.join(map(repr, paths))}"
