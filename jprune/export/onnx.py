"""ONNX, by jax2onnx."""

from pathlib import Path
from typing import Any

from jprune._core.typing import Tree
from jprune.compaction import Certificate
from jprune.export import files
from jprune.export.extras import needed
from jprune.export.foreign import flattened, verified

_CALL = "export.to_onnx(path, fn, params, *args)"
_INSTALL = "jax2onnx onnxruntime"


def to_onnx(
    path: str | Path,
    fn: Any,
    params: Tree,
    *args: Any,
    verify: bool = True,
    tolerance: float | None = None,
    **static: Any,
) -> Certificate | None:
    """Writes a function and its parameters as an ONNX model, with jax2onnx.

    Inputs are named ``args_0`` and so on, and outputs ``output_0``. The leaves of a
    tree are named by their paths: ``args_0_x``, ``output_x``.

    Args:
      path: The file. An old file is replaced once the new one is complete.
      fn: A function of parameters and arrays: ``small.fn``.
      params: Its parameters, concrete; they become initializers.
      *args: Its further arguments, arrays or shapes; sizes may be symbols.
      verify: Whether onnxruntime runs the model on random inputs and compares the
        outputs, before anything is written.
      tolerance: The largest difference that passes, as a fraction of the largest
        output; None: the root of the precision.
      **static: Further keyword arguments of ``fn``, fixed.

    Returns:
      A :class:`~jprune.compaction.Certificate`; None without ``verify``.

    Raises:
      ValueError: The converter fails, or the converted model gives other outputs.
      ImportError: ``jax2onnx`` or ``onnxruntime`` is not installed.
    """
    library = needed("to_onnx", "jax2onnx", _INSTALL)
    runtime = needed("to_onnx", "onnxruntime", _INSTALL) if verify else None
    place = files.check_file(_CALL, path)
    flat = flattened("export.to_onnx", fn, params, args, static)
    try:
        model = library.to_onnx(
            lambda *xs: tuple(flat.call(*xs)),
            flat.shapes,
            input_names=flat.inputs,
            output_names=flat.outputs,
        )
    except Exception as error:  # of another library
        raise ValueError(f"`{_CALL}`: jax2onnx can't: {error}") from error
    data = model.SerializeToString()
    certificate = None
    if runtime is not None:

        def run(inputs: Any) -> Any:
            session = runtime.InferenceSession(
                data, providers=["CPUExecutionProvider"]
            )
            given = dict(zip(flat.inputs, inputs, strict=True))
            return session.run(flat.outputs, given)

        certificate = verified(_CALL, flat, args, run, tolerance)
    files.write(place, data)
    return certificate
