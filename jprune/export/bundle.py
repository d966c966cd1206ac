"""A model in files: program, parameters, plan, certificate, and a case to try."""

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from jprune._core.checks import check_member, check_positive
from jprune._core.describe import describe
from jprune._core.programs import bound, check_call
from jprune._core.trees import path_name
from jprune._core.typing import Tree
from jprune.compaction import Certificate, Plan
from jprune.compaction.removal.plan import in_jax
from jprune.export import arrays, case, files, program
from jprune.export.program import Program
from jprune.export.trees import flat, plain

FORMAT = "jprune.bundle"
VERSION = 1  # of the format: what is read is this one and all before
_LOAD = "export.load(path)"
_PACKAGES = ("jprune", "jax", "jaxlib", "numpy")


@dataclass(frozen=True, repr=False)
class Bundle:
    """A model that was loaded: see :func:`load`."""

    params: dict[str, Any]  #: Arrays by their paths: ``"Dense_0/kernel"``.
    plan: Plan | None  #: What was kept of the dense model.
    certificate: Certificate | None  #: How far it is from the masked one.
    platforms: tuple[
        str, ...
    ]  #: Where it runs: ``"cpu"``, ``"cuda"``, ``"tpu"``.
    vjp: bool  #: Whether it can be differentiated.
    versions: dict[str, str]  #: What wrote it.
    _exported: export.Exported
    _constants: dict[str, Any]
    _case: tuple[case.Drawn, ...]
    _wanted: list[np.ndarray] = field(default_factory=list)

    @cached_property
    def fn(self) -> Any:
        """The function of the flat parameters and the arguments.

        It is jitted, and runs without jprune's or the model's source. Arguments
        and outputs are dicts, lists and tuples; a NamedTuple is a tuple, a
        dataclass a dict of its fields.

        Raises:
          ValueError: Parameters or arguments have other paths, shapes or types.
        """
        run = jax.jit(self._exported.call)
        constants = self._constants

        def fn(params: Mapping[str, Any], *args: Any) -> Any:
            given = tuple(map(plain, args))
            inputs = (dict(params), constants, *given)
            try:
                return run(*inputs)
            except (TypeError, ValueError):  # checked here, it costs no time
                _check_inputs(self._exported, inputs)
                raise

        return fn

    def verify(self, *, tolerance: float | None = None) -> Certificate:
        """Runs it on inputs drawn from a seed, and compares with what was stored.

        Args:
          tolerance: The largest difference that passes, as a fraction of the
            largest output. None: the root of the precision of the outputs, 3e-4
            for float32. What is no floating number is compared and not held.

        Returns:
          A :class:`~jprune.compaction.Certificate`.

        Raises:
          ValueError: Outputs are further apart: it is another program, or this
            machine computes something else.
        """
        if tolerance is not None:
            check_positive("`bundle.verify(tolerance=...)`", tolerance)
        leaves = case.draw(self._case)
        (_, _, *shapes), _ = jax.tree.unflatten(
            self._exported.in_tree, self._exported.in_avals
        )
        args = jax.tree.unflatten(jax.tree.structure(shapes), leaves)
        found = case.sample(self.fn(self.params, *args))
        return case.check("bundle.verify()", self._wanted, found, tolerance)

    def __repr__(self) -> str:
        size = sum(int(np.size(x)) for x in self.params.values())
        return f"Bundle({size:,} parameters in {len(self.params)} arrays)"


def save(
    path: str | Path,
    fn: Any,
    params: Tree,
    *args: Any,
    plan: Plan | None = None,
    certificate: Certificate | None = None,
    vjp: bool = False,
    platforms: Sequence[str] | None = None,
    **static: Any,
) -> None:
    """Writes a function and its parameters to files that need no source.

    The program is StableHLO (:mod:`jax.export`), the parameters are safetensors, all
    else is JSON; there is no pickle. Constants of the function above 64 KiB are
    stored beside the parameters. Beside a bundle that is there already, the new
    one is written before the old one goes: a save that fails or is killed
    leaves the old one whole.

    Args:
      path: A folder; or, if it ends in ``.zip``, one file.
      fn: A function of parameters and arrays: ``model.apply``, ``small.fn``.
      params: Its parameters, concrete; any pytree of arrays.
      *args: Its further arguments, arrays or shapes. Sizes that are symbols
        (:func:`jax.export.symbolic_shape`) stay open. Values are not stored, but
        for the least and the largest of integers.
      plan: What was kept of a dense model, to be stored.
      certificate: What was measured, to be stored.
      vjp: Whether the derivative is stored too, so that training can go on.
      platforms: Where it is to run, of ``"cpu"``, ``"cuda"``, ``"rocm"`` and
        ``"tpu"``. None: where this process runs.
      **static: Further keyword arguments of ``fn``, fixed.

    Raises:
      ValueError: ``fn`` can't be exported, a parameter has no values, the plan is
        that of another model, or something else is at ``path``.
      ImportError: ``safetensors`` or ``flatbuffers`` is not installed.

    >>> import tempfile, jax.numpy as jnp, jprune
    >>> def fn(params, x):
    ...     return jnp.tanh(x @ params["w"])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     jprune.export.save(f"{folder}/m", fn, {"w": jnp.eye(3)}, jnp.ones((2, 3)))
    ...     bundle = jprune.export.load(f"{folder}/m")
    >>> bundle.fn(bundle.params, jnp.zeros((2, 3))).shape
    (2, 3)
    >>> bundle.verify().error < 1e-6
    True
    """
    call = "export.save(path, fn, params, *args)"
    place = files.check_place(call, path)
    check_call("export.save", fn, params, args, concrete=True)
    _check_about(plan, certificate, vjp)
    held = flat(params)
    _check_plan(f"`{call}`: the plan", plan, held)
    fn = bound("export.save", fn, static)
    made = program.trace(call, fn, params, args, platforms)
    code = program.to_bytes("save(path, ...)", made.exported, vjp)
    drawn, outputs = _tried(call, fn, params, args, made)
    parts = {
        "program.stablehlo": code,
        "params.safetensors": _tensors(held),
        "outputs.safetensors": _tensors(
            {str(i): x for i, x in enumerate(outputs)}
        ),
    }
    if made.constants:
        parts["constants.safetensors"] = _tensors(made.constants)
    if plan is not None:
        parts["plan.json"] = plan.to_json().encode()
    about = {
        "format": FORMAT,
        "version": VERSION,
        "versions": _versions(),
        "platforms": list(made.exported.platforms),
        "vjp": bool(vjp),
        "case": [spec._asdict() for spec in drawn],
        "certificate": _certificate_to(certificate),
    }
    files.write_bundle(place, parts, about)


def save_compact(
    path: str | Path,
    small: Any,
    args: tuple[Any, ...],
    *,
    vjp: bool,
    platforms: Sequence[str] | None,
) -> None:
    """What ``small.save`` does: with its plan, and a certificate of its own."""
    call = "small.save(path, *args)"
    files.check_place(call, path)
    check_call("small.save", small.fn, small.params, args, concrete=False)
    certificate = _certified(small, args)
    save(
        path,
        small.fn,
        small.params,
        *args,
        plan=small.plan,
        certificate=certificate,
        vjp=vjp,
        platforms=platforms,
    )


def load(path: str | Path) -> Bundle:
    """Reads what :func:`save` wrote.

    Nothing that a file brings is run while it is read, and nothing but XLA's
    operations when it is called. Files are not encrypted or signed: load what you
    trust, as for any program.

    Args:
      path: The folder or the ``.zip`` file.

    Returns:
      A :class:`Bundle`: ``bundle.fn(bundle.params, *args)`` computes what was saved.

    Raises:
      ValueError: A file is missing, damaged, another one, or of a later version;
        the place and the rule are named.
      ImportError: ``safetensors`` or ``flatbuffers`` is not installed.
    """
    about, parts = files.read_bundle(_LOAD, path, _check_version)
    place = f"`{_LOAD}`: '{path}'"
    try:
        return _bundle(place, about, parts)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{place}: no bundle: {error!r}.") from None


def _bundle(
    place: str, about: dict[str, Any], parts: dict[str, bytes]
) -> Bundle:
    versions = {str(k): str(v) for k, v in about["versions"].items()}
    exported = program.from_bytes(
        f"{place}, program", parts["program"], versions.get("jax", "?")
    )
    params = _arrays(f"{place}, params", parts["params"])
    constants = {}
    if "constants" in parts:
        constants = _arrays(f"{place}, constants", parts["constants"])
    outputs = _arrays(f"{place}, outputs", parts["outputs"])
    plan = None
    if "plan" in parts:
        plan = Plan.from_json(parts["plan"].decode())
    _check_plan(f"{place}, the plan", plan, params)
    (shapes, large, *_), _ = jax.tree.unflatten(
        exported.in_tree, exported.in_avals
    )
    for kind, wanted, found in (
        ("params", shapes, params),
        ("constants", large, constants),
    ):
        _check_arrays(f"{place}, {kind}", wanted, found)
    drawn = tuple(_drawn_of(spec) for spec in about["case"])
    _check_case(f"{place}, case", exported, drawn)
    if len(outputs) != len(exported.out_avals):
        raise ValueError(
            f"{place}, outputs: the program has {len(exported.out_avals)}, the "
            f"file {len(outputs)}."
        )
    return Bundle(
        params=params,
        plan=plan,
        certificate=_certificate_of(about["certificate"]),
        platforms=tuple(exported.platforms),
        vjp=bool(about["vjp"]),
        versions=versions,
        _exported=exported,
        _constants=constants,
        _case=drawn,
        _wanted=[np.asarray(outputs[str(i)]) for i in range(len(outputs))],
    )


# What goes into files, and comes out of them --------------------------------


def _tensors(held: Mapping[str, Any]) -> bytes:
    """Arrays of any type, and a note of the types that readers don't know."""
    found = {name: arrays.stored(x) for name, x in held.items()}
    types = {
        name: dtype
        for name, (x, dtype) in found.items()
        if str(x.dtype) != dtype
    }
    return arrays.to_bytes(
        "save(path, ...)",
        {name: x for name, (x, _) in found.items()},
        **({"types": json.dumps(types)} if types else {}),
    )


def _arrays(place: str, data: bytes) -> dict[str, Any]:
    found, notes = arrays.from_bytes("load(path)", place, data)
    try:
        types = json.loads(notes.get("types", "{}"))
    except ValueError as error:
        raise ValueError(f"{place}: types are no JSON: {error}.") from None
    return {
        name: in_jax(
            arrays.restored(
                f"{place}, {name!r},", x, types.get(name, str(x.dtype))
            )
        )
        for name, x in sorted(found.items())
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "?"
    return found


def _certificate_to(certificate: Certificate | None) -> Any:
    if certificate is None:
        return None
    # JSON has no inf.
    return {
        k: v if isinstance(v, int) else repr(float(v))
        for k, v in certificate._asdict().items()
    }


def _certificate_of(data: Any) -> Certificate | None:
    if data is None:
        return None
    return Certificate(
        float(data["error"]),
        float(data["scale"]),
        int(data["cases"]),
        int(data["skipped"]),
    )


def _drawn_of(data: Any) -> case.Drawn:
    shape, dtype, low, high = (
        data[k] for k in ("shape", "dtype", "low", "high")
    )
    return case.Drawn(tuple(map(int, shape)), str(dtype), int(low), int(high))


# Trying it, before it is written ---------------------------------------------


def _tried(
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


def _certified(small: Any, args: tuple[Any, ...]) -> Certificate | None:
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


# What is refused -------------------------------------------------------------


def _check_about(plan: Any, certificate: Any, vjp: Any) -> None:
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


def _check_version(place: str, about: dict[str, Any]) -> None:
    found = about.get("format"), about.get("version")
    if found[0] != FORMAT:
        raise ValueError(f"{place}: a format of {found[0]!r}, not {FORMAT!r}.")
    if not isinstance(found[1], int) or not 1 <= found[1] <= VERSION:
        raise ValueError(
            f"{place}: version {found[1]!r} of the format; this jprune reads "
            f"1 to {VERSION}. A newer jprune reads newer files."
        )


def _check_plan(
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


def _check_arrays(
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


def _check_case(
    place: str, exported: export.Exported, drawn: Sequence[case.Drawn]
) -> None:
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


def _check_inputs(exported: export.Exported, inputs: Any) -> None:
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
