"""Everything that is worth measuring on a GPU or TPU.

    python examples/benchmarks/gpu.py            # on the default device
    python examples/benchmarks/gpu.py --quick    # small, to try the script

It runs other benchmarks one after the other, each in a process of its own, with
options that suit a fast device, and says how long each took:

- `selection.py`: GB/s and read passes of exact selection;
- `train_step.py`: a step between choices of masks and at them, beside the bare
  step;
- `compaction.py`: the smaller network beside the dense one, at three batches;
- here: `one_shot` of an MLP by each solver, beside its dense forward pass.

Nothing is compared with other devices: run it on both. It should take less than
ten minutes, which no GPU has shown yet.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

import jprune
from jprune.models import MLP

FULL = {
    "selection": ["--sizes", "1e7", "1e8", "--no-sorts"],
    "train_step": ["--rounds=7"],
    "compaction": [],
    "one_shot": [],
}
QUICK = {
    "selection": ["--quick", "--no-sorts"],
    "train_step": ["--rounds=1", "--steps=1", "--leaves=2", "--layers=1"],
    "compaction": ["--rounds=3", "--batches", "1"],
    "one_shot": ["--quick"],
}


def one_shot(width: int, rows: int) -> None:
    """Prints seconds of `one_shot`, each shape compiled before."""
    model = MLP((width, width, 10))
    x = jax.random.normal(jax.random.key(0), (rows, 784))
    params = model.init(jax.random.key(1), x)
    dense = jax.jit(model.apply)
    jax.block_until_ready(dense(params, x))
    times = []
    for _ in range(20):
        start = time.perf_counter()
        jax.block_until_ready(dense(params, x))
        times.append(time.perf_counter() - start)
    forward = float(np.median(times))
    print(
        f"784-{width}-{width}-10, {rows:,} rows: {1e3 * forward:.2f} ms dense"
    )
    for solver in (jprune.solvers.admm(), jprune.solvers.sparsegpt()):
        for sparsity in (0.4, 0.5):  # the second compiles nothing
            start = time.perf_counter()
            found = jprune.one_shot(
                model.apply, params, [(x,)], sparsity, solver=solver
            )
            jax.block_until_ready(found.params)
            seconds = time.perf_counter() - start
        passes = f"{seconds / forward:,.0f} dense passes"
        print(f"one_shot by {solver!r}: {seconds:.2f} s, {passes}", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs all, or `one_shot` alone in the process that measures it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", default=[*FULL])
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.here:
        print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
        one_shot(*((32, 64) if args.quick else (1024, 8192)))
        return
    for name in args.only:
        options = (QUICK if args.quick else FULL)[name]
        script = Path(__file__).parent / f"{name}.py"
        if name == "one_shot":
            script, options = Path(__file__), [*options, "--here"]
        print(f"\n== {name} {' '.join(options)}", flush=True)
        start = time.perf_counter()
        subprocess.run([sys.executable, script, *options], check=True)
        print(f"{time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
