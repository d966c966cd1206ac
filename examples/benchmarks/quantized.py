"""int8 by the quantizers of ONNX and LiteRT, on a compact model of the digits.

    python examples/benchmarks/quantized.py

Sizes, test accuracy, the time of a call for one image, and how many of the
weights are zero, dense, pruned and compact. It needs jax2onnx, onnxruntime,
litert-converter, ai-edge-litert and ai-edge-quantizer.
"""

import contextlib
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import optax

import jprune
from jprune.models import MLP

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import (
    accuracy,
    batches,
    cross_entropy,
    digits,
    flags,
    print_table,
)

args = flags(
    __doc__,
    steps=(900, "steps of training"),
    sparsity=(0.9, "of the weights, or .75 of the units"),
    calls=(500, "calls that are timed"),
)
# What needs them comes after `--help`.
import onnx  # noqa: E402
import onnxruntime  # noqa: E402
from ai_edge_litert.interpreter import Interpreter  # noqa: E402
from ai_edge_quantizer import quantizer, recipe  # noqa: E402
from onnxruntime.quantization import quantize_dynamic  # noqa: E402

data = digits()
model = MLP((256, 128, 10))
start = model.init(jax.random.key(0), data.x_test[:1])


def train(tx):
    @jax.jit
    def step(params, state, x, y):
        def loss(params):
            return cross_entropy(model.apply(params, x), y)

        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    params, state = start, tx.init(start)
    for x, y in batches(data, range(args.steps)):
        params, state = step(params, state, x, y)
    return params, state


def ramp(sparsity):
    return optax.polynomial_schedule(
        0.0, sparsity, 3, args.steps // 2, args.steps // 6
    )


def latency(run):
    """The median of many calls for one image, in microseconds."""
    times = []
    for _ in range(args.calls):
        begin = time.perf_counter()
        run(data.x_test[:1])
        times.append(time.perf_counter() - begin)
    return f"{1e6 * np.median(times):.0f}"


def row(name, kind, file, run, weights):
    """A line of the table, of a function of images ``[1, 64]``."""
    logits = np.concatenate([run(x[None]) for x in data.x_test])
    zeros = sum(int((w == 0).sum()) for w in weights)
    size = sum(w.size for w in weights)
    return (
        *(f"{name}, {kind}", file.stat().st_size),
        f"{accuracy(logits, data.y_test):.1%}",
        *(latency(run), f"{zeros / max(size, 1):.1%}"),
    )


def quantizable(file, target):
    """A product without a bias, as onnxruntime's quantizer wants it.

    jax2onnx writes it as a Gemm of `beta = 0`, which the quantizer leaves in
    float; what is multiplied by beta is 0 or absent, so 1 is the same.
    """
    graph = onnx.load(file)
    for node in graph.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Gemm" and attribute.name == "beta":
                attribute.f = 1.0
    onnx.save(graph, target)
    return target


def onnx_rows(name, folder, fn, params):
    file = folder / "model.onnx"
    jprune.export.to_onnx(file, fn, params, data.x_test[:1])
    small = folder / "int8.onnx"
    quantize_dynamic(quantizable(file, folder / "gemm.onnx"), small)
    for kind, path in (("ONNX", file), ("ONNX int8", small)):
        session = onnxruntime.InferenceSession(
            path, providers=["CPUExecutionProvider"]
        )
        held = onnx.load(path).graph.initializer
        arrays = [onnx.numpy_helper.to_array(x) for x in held]
        weights = [x for x in arrays if x.ndim == 2]
        yield row(
            name,
            kind,
            path,
            lambda x, s=session: s.run(None, {"args_0": x})[0],
            weights,
        )


def litert_rows(name, folder, fn, params):
    file = folder / "model.tflite"
    jprune.export.to_litert(file, fn, params, data.x_test[:1])
    small = folder / "int8.tflite"
    tool = quantizer.Quantizer(str(file), recipe.dynamic_wi8_afp32())
    small.unlink(missing_ok=True)
    with contextlib.redirect_stdout(sys.stderr):
        tool.quantize().export_model(str(small))
    for kind, path in (("LiteRT", file), ("LiteRT int8", small)):
        interpreter = Interpreter(str(path))
        interpreter.allocate_tensors()
        call = interpreter.get_signature_runner()
        weights = []
        for detail in interpreter.get_tensor_details():
            if len(detail["shape"]) == 2 and min(detail["shape"]) > 1:
                weights.append(interpreter.get_tensor(detail["index"]))
        yield row(
            name,
            kind,
            path,
            lambda x, c=call: c(args_0=x)["output_0"],
            weights,
        )


def main():
    x = data.x_test[:1]
    dense, _ = train(optax.adamw(3e-3))
    sparse, _ = train(
        optax.chain(optax.adamw(3e-3), jprune.prune(ramp(args.sparsity)))
    )
    graph = jprune.trace_units(model.apply, start, x)
    tx = optax.chain(
        optax.adamw(3e-3),
        jprune.prune(ramp(0.75), structure=jprune.units(graph)),
    )
    params, state = train(tx)
    masks = jprune.get_masks(state)
    small = jprune.compact(model.apply, params, x, masks=masks)
    cost = jprune.report.cost(model.apply, params, x, masks=masks)
    share = cost.compact.multiply_adds / cost.dense.multiply_adds
    print(f"compact: {share:.1%} of the multiply-adds\n")
    rows = []
    for name, fn, params in (
        ("dense", model.apply, dense),
        ("sparse", model.apply, sparse),
        ("compact", small.fn, small.params),
    ):
        with tempfile.TemporaryDirectory() as folder:
            rows += onnx_rows(name, Path(folder), fn, params)
            rows += litert_rows(name, Path(folder), fn, params)
    print_table(
        ("model, format", "bytes", "accuracy", "µs, median", "zeros"), rows
    )


main()
