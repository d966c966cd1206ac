"""Times a network without its dead units, beside what its products promise.

An MLP 784-1024-1024-10 loses units at random in multiples of 8. The ideal is
the ratio of multiply-adds; models take turns, and medians are compared.
"""

import argparse
import os
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jprune
from jprune.models import MLP

MODEL = MLP((1024, 1024, 10))


def medians(
    calls: dict[str, Any], rounds: int, repeat: int
) -> dict[str, float]:
    """Seconds per call, the models taking turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            begin = time.perf_counter()
            for _ in range(repeat):
                y = call()
            jax.block_until_ready(y)
            if turn:  # the first call compiles
                times[name].append((time.perf_counter() - begin) / repeat)
    return {name: float(np.median(t)) for name, t in times.items()}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32, 256])
    parser.add_argument("--rounds", type=int, default=31)
    options = parser.parse_args()
    x = jnp.ones((1, 784))
    params = MODEL.init(jax.random.key(0), x)
    graph = jprune.trace_units(MODEL.apply, params, x)
    structure = jprune.units(graph, round_to=8)
    models = {"0%": (jax.jit(MODEL.apply), params)}
    for sparsity in (0.25, 0.5, 0.75, 0.9):
        masks = jprune.find_masks(params, sparsity, structure=structure)
        small = jprune.compact(MODEL.apply, params, x, masks=masks)
        models[f"{sparsity:.0%}"] = (small.fn, small.params)
    products = {
        name: jprune.report.cost(fn, p, x).dense.multiply_adds
        for name, (fn, p) in models.items()
    }
    device = jax.devices()[0]
    print(f"{os.cpu_count()} cores, jax {jax.__version__}, {device}\n")
    print("| batch | units removed | ms | speed-up | ideal | of the ideal |")
    print("|---|---|---|---|---|---|")
    for batch in options.batches:
        inputs = jnp.ones((batch, 784))
        calls = {
            name: lambda fn=fn, p=p: fn(p, inputs)  # noqa: B023
            for name, (fn, p) in models.items()
        }
        found = medians(calls, options.rounds, 10 if batch < 100 else 3)
        for name, t in found.items():
            speed = found["0%"] / t
            ideal = products["0%"] / products[name]
            print(
                f"| {batch} | {name} | {t * 1e3:.3f} | {speed:.2f} "
                f"| {ideal:.2f} | {speed / ideal:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
