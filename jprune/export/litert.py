"""LiteRT (TFLite), by litert-converter: from StableHLO, without TensorFlow."""

from pathlib import Path
from typing import Any

import jax

from jprune._core.typing import Tree
from jprune.compaction import Certificate
from jprune.export import files
from jprune.export.extras import needed
from jprune.export.foreign import Flat, flattened, verified

_CALL = "export.to_litert(path, fn, params, *args)"
_INSTALL = "litert-converter ai-edge-litert"
_SIGNATURE = "serving_default"


def to_litert(
    path: str | Path,
    fn: Any,
    params: Tree,
    *args: Any,
    verify: bool = True,
    tolerance: float | None = None,
    **static: Any,
) -> Certificate | None:
    """Writes a function and its parameters as a LiteRT (``.tflite``) model.

    The signature ``serving_default`` names inputs ``args_0`` and so on, and outputs
    ``output_0``. The leaves of a tree are named by their paths: ``args_0_x``,
    ``output_x``.

    Args:
      path: The file. An old file is replaced once the new one is complete.
      fn: A function of parameters and arrays: ``small.fn``.
      params: Its parameters, concrete; they become constants.
      *args: Its further arguments, arrays or shapes of numbers.
      verify: Whether the interpreter runs the model on random inputs and compares the
        outputs, before anything is written.
      tolerance: The largest difference that passes, as a fraction of the largest
        output; None: the root of the precision.
      **static: Further keyword arguments of ``fn``, fixed.

    Returns:
      A :class:`~jprune.compaction.Certificate`; None without ``verify``.

    Raises:
      ValueError: The converter fails, or the converted model gives other outputs.
      ImportError: ``litert-converter`` or ``ai-edge-litert`` is not installed.
    """
    converter = needed(
        "to_litert", "litert_converter.converter_api_ext", _INSTALL
    )
    ir = needed("to_litert", "litert_converter.mlir.ir", _INSTALL)
    passes = needed("to_litert", "litert_converter.mlir.passmanager", _INSTALL)
    runtime = None
    if verify:
        runtime = needed("to_litert", "ai_edge_litert.interpreter", _INSTALL)
    place = files.check_file(_CALL, path)
    flat = flattened("export.to_litert", fn, params, args, static)
    try:
        data = _converted(converter, ir, passes, flat)
    except Exception as error:  # of another library
        raise ValueError(
            f"`{_CALL}`: litert-converter can't: {error}"
        ) from error
    certificate = None
    if runtime is not None:

        def run(inputs: Any) -> Any:
            interpreter = runtime.Interpreter(model_content=data)
            signature = interpreter.get_signature_runner(_SIGNATURE)
            given = dict(zip(flat.inputs, inputs, strict=True))
            found = signature(**given)
            return [found[name] for name in flat.outputs]

        certificate = verified(_CALL, flat, args, run, tolerance)
    files.write(place, data)
    return certificate


def _converted(converter: Any, ir: Any, passes: Any, flat: Flat) -> bytes:
    text = jax.jit(flat.call).lower(*flat.shapes).as_text()
    with ir.Context() as context, ir.Location.unknown():
        converter.prepare_mlir_context(context)
        module = ir.Module.parse(text, context)
        converter.set_signature(
            module.operation, _SIGNATURE, flat.inputs, flat.outputs
        )
        manager = passes.PassManager()
        converter.run_convert_to_tfl_passes(
            module, manager, converter.ConvertToTFLConfig()
        )
        manager.run(module.operation)
        return bytes(converter.export_flatbuffer_to_bytes(module.operation))
