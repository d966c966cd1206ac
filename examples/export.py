"""A network is pruned, compacted, saved to files, and run in another process.

    python examples/export.py

The process that loads the model has neither Flax nor the model's source. The
script writes ONNX and LiteRT too, if jax2onnx, onnxruntime, litert-converter
and ai-edge-litert are installed.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import optax
from common import accuracy, batches, cross_entropy, digits, flags, print_table

import jprune
from jprune.models import MLP

args = flags(
    __doc__,
    steps=(900, "steps of training"),
    sparsity=(0.75, "of the units"),
    calls=(200, "calls that are timed"),
)
data = digits()
model = MLP((256, 128, 10))
x = data.x_test[:1]


def train():
    """Units are pruned while the network learns, and it goes on without."""
    params = model.init(jax.random.key(0), x)
    graph = jprune.trace_units(model.apply, params, x)
    ramp = optax.polynomial_schedule(
        0.0, args.sparsity, 3, max(args.steps // 2, 1), args.steps // 6
    )
    pruner = jprune.prune(ramp, structure=jprune.units(graph), every=10)
    tx = optax.chain(optax.adamw(3e-3), pruner)

    @jax.jit
    def step(params, state, x, y):
        def loss(params):
            return cross_entropy(model.apply(params, x), y)

        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for images, labels in batches(data, range(args.steps), "training"):
        params, state = step(params, state, images, labels)
    return params, jprune.get_masks(state)


def latency(run):
    """The median of many calls, in microseconds."""
    times = []
    for _ in range(args.calls):
        start = time.perf_counter()
        jax.block_until_ready(run(x))
        times.append(time.perf_counter() - start)
    return f"{1e6 * np.median(times):.0f}"


ELSEWHERE = """
import sys
sys.modules["flax"] = None  # not there
import numpy as np, jprune
bundle = jprune.export.load(sys.argv[1])
bundle.verify()
np.save(sys.argv[2], bundle.fn(bundle.params, np.load(sys.argv[3])))
"""


def elsewhere(bundle):
    """What another process makes of the test images."""
    images, logits = bundle.with_name("x.npy"), bundle.with_name("y.npy")
    np.save(images, data.x_test)
    command = [sys.executable, "-c", ELSEWHERE]
    subprocess.run([*command, bundle, logits, images], check=True)
    return np.load(logits)


def others(folder, small):
    """A row for each other format whose libraries are installed."""
    try:
        import onnxruntime

        file = folder / "model.onnx"
        found = jprune.export.to_onnx(file, small.fn, small.params, x)
        session = onnxruntime.InferenceSession(file)
        yield (
            *("ONNX", file.stat().st_size, f"{found.error:.0e}"),
            latency(lambda x: session.run(None, {"args_0": x})),
        )
    except ImportError as error:
        print(f"no ONNX: {error}", file=sys.stderr)
    try:
        from ai_edge_litert.interpreter import Interpreter

        file = folder / "model.tflite"
        found = jprune.export.to_litert(file, small.fn, small.params, x)
        call = Interpreter(str(file)).get_signature_runner()
        yield (
            *("LiteRT", file.stat().st_size, f"{found.error:.0e}"),
            latency(lambda x: call(args_0=x)),
        )
    except ImportError as error:
        print(f"no LiteRT: {error}", file=sys.stderr)


def main():
    params, masks = train()
    small = jprune.compact(model.apply, params, x, masks=masks)
    print(small, end="\n\n")
    (batch,) = jax.export.symbolic_shape("batch")
    any_batch = jax.ShapeDtypeStruct((batch, 64), x.dtype)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        jprune.export.save(folder / "dense.zip", model.apply, params, any_batch)
        small.save(folder / "small.zip", any_batch)
        jprune.export.save_sparse(folder / "sparse", params, masks)
        there = elsewhere(folder / "small.zip")
        rows = []
        dense = jax.jit(model.apply)
        for kind, run in (
            ("dense", lambda x: dense(params, x)),
            ("small", lambda x: small.fn(small.params, x)),
        ):
            bundle = jprune.export.load(folder / f"{kind}.zip")
            error = f"{bundle.verify().error:.0e}"
            size = (folder / f"{kind}.zip").stat().st_size
            rows += [(f"{kind}, in Python", "", "", latency(run))]
            rows += [
                (
                    *(f"{kind}, loaded", size, error),
                    latency(lambda x, b=bundle: b.fn(b.params, x)),
                )
            ]
        frozen = small.freeze(x)
        rows += [
            (
                "small, frozen",
                "",
                "",
                latency(lambda x: frozen(small.params, x)),
            )
        ]
        rows += others(folder, small)
        rows += [("sparse file", (folder / "sparse").stat().st_size, "", "")]
    print_table(("one image", "bytes", "error", "µs, median"), rows)
    print()
    here = small.fn(small.params, data.x_test)
    print(f"Largest difference elsewhere: {np.abs(there - here).max():.0e}.")
    masked = dense(jprune.apply_masks(params, masks), data.x_test)
    print(
        f"Test accuracy: {accuracy(masked, data.y_test):.1%} masked, "
        f"{accuracy(there, data.y_test):.1%} compact, elsewhere."
    )


main()
