"""A model in files: program, parameters, plan, certificate, and a case to try."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export

from jprune._core.checks import check_positive
from jprune._core.hosts import check_here
from jprune._core.programs import bound, check_call
from jprune._core.typing import Tree
from jprune.compaction import Certificate, Plan
from jprune.export import case, files, program
from jprune.export.contents import (
    arrays_of,
    certificate_of,
    certificate_to,
    drawn_of,
    tensors,
    versions,
)
from jprune.export.refusals import (
    FORMAT,
    VERSION,
    check_about,
    check_arrays,
    check_case,
    check_inputs,
    check_plan,
    check_version,
)
from jprune.export.trees import flat, plain
from jprune.export.trial import certified, tried

_LOAD = "export.load(path)"


@dataclass(frozen=True, repr=False)
class Bundle:
    """A model that :func:`load` read from files."""

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
        """The jitted function of the flat parameters and the arguments.

        It runs without the source of jprune or of the model. Arguments and outputs
        are dicts, lists and tuples: a NamedTuple becomes a tuple, and a dataclass a
        dict of its fields.

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
                check_inputs(self._exported, inputs)
                raise

        return fn

    def verify(self, *, tolerance: float | None = None) -> Certificate:
        """Checks that the model gives the stored outputs on this machine.

        It runs the model on inputs drawn from a seed, and compares the outputs with
        those that :func:`save` stored.

        Args:
          tolerance: The largest difference that passes, as a fraction of the
            largest output. None: the root of the precision of the outputs, 3e-4
            for float32. Outputs that are not floating may differ, but count in the
            certificate.

        Returns:
          A :class:`~jprune.compaction.Certificate`.

        Raises:
          ValueError: Outputs differ more: the program is another one, or this
            machine computes it differently.
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
    """Saves a function and its parameters to files that run without its source.

    The program is stored as StableHLO (:mod:`jax.export`), the parameters as
    safetensors and everything else as JSON, without pickle. Constants of the function
    above 64 KiB are stored beside the parameters. If a bundle is there already, it is
    replaced only after the new one is written: a save that fails or is killed leaves
    the old one whole.

    Args:
      path: A folder, or a single file if it ends in ``.zip``.
      fn: A function of parameters and arrays: ``model.apply``, ``small.fn``.
      params: Its parameters, concrete; any pytree of arrays.
      *args: Its further arguments, arrays or shapes. Symbolic sizes
        (:func:`jax.export.symbolic_shape`) stay variable. Values are not stored,
        except the smallest and the largest of integers.
      plan: The plan of a compact model, which is stored too.
      certificate: The certificate of a compact model, which is stored too.
      vjp: Whether the derivative is stored too, so that training can go on.
      platforms: The platforms it will run on, of ``"cpu"``, ``"cuda"``, ``"rocm"``
        and ``"tpu"``. None: that of this process.
      **static: Further keyword arguments of ``fn``, fixed.

    Raises:
      ValueError: ``fn`` can't be exported, a parameter has no values, the plan
        belongs to another model, or something else is at ``path``.
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
    check_here(call, params)
    check_about(plan, certificate, vjp)
    held = flat(params)
    check_plan(f"`{call}`: the plan", plan, held)
    fn = bound("export.save", fn, static)
    made = program.trace(call, fn, params, args, platforms)
    code = program.to_bytes("save(path, ...)", made.exported, vjp)
    drawn, outputs = tried(call, fn, params, args, made)
    parts = {
        "program.stablehlo": code,
        "params.safetensors": tensors(held),
        "outputs.safetensors": tensors(
            {str(i): x for i, x in enumerate(outputs)}
        ),
    }
    if made.constants:
        parts["constants.safetensors"] = tensors(made.constants)
    if plan is not None:
        parts["plan.json"] = plan.to_json().encode()
    about = {
        "format": FORMAT,
        "version": VERSION,
        "versions": versions(),
        "platforms": list(made.exported.platforms),
        "vjp": bool(vjp),
        "case": [spec._asdict() for spec in drawn],
        "certificate": certificate_to(certificate),
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
    certificate = certified(small, args)
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
    """Loads a model that :func:`save` wrote.

    Loading runs no code from the files, and calling the model runs only XLA's
    operations. Files are not encrypted or signed: load only those that you trust, as
    with any program.

    Args:
      path: The folder or the ``.zip`` file.

    Returns:
      A :class:`Bundle`: ``bundle.fn(bundle.params, *args)`` computes what was saved.

    Raises:
      ValueError: A file is missing, damaged, not of this bundle, or of a later
        version; the message names the place and the rule.
      ImportError: ``safetensors`` or ``flatbuffers`` is not installed.
    """
    about, parts = files.read_bundle(_LOAD, path, check_version)
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
    params = arrays_of(f"{place}, params", parts["params"])
    constants = {}
    if "constants" in parts:
        constants = arrays_of(f"{place}, constants", parts["constants"])
    outputs = arrays_of(f"{place}, outputs", parts["outputs"])
    plan = None
    if "plan" in parts:
        plan = Plan.from_json(parts["plan"].decode())
    check_plan(f"{place}, the plan", plan, params)
    (shapes, large, *_), _ = jax.tree.unflatten(
        exported.in_tree, exported.in_avals
    )
    for kind, wanted, found in (
        ("params", shapes, params),
        ("constants", large, constants),
    ):
        check_arrays(f"{place}, {kind}", wanted, found)
    drawn = tuple(drawn_of(spec) for spec in about["case"])
    check_case(f"{place}, case", exported, drawn)
    if len(outputs) != len(exported.out_avals):
        raise ValueError(
            f"{place}, outputs: the program has {len(exported.out_avals)}, the "
            f"file {len(outputs)}."
        )
    return Bundle(
        params=params,
        plan=plan,
        certificate=certificate_of(about["certificate"]),
        platforms=tuple(exported.platforms),
        vjp=bool(about["vjp"]),
        versions=versions,
        _exported=exported,
        _constants=constants,
        _case=drawn,
        _wanted=[np.asarray(outputs[str(i)]) for i in range(len(outputs))],
    )
