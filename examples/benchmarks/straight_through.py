"""Times a training step that chooses its masks anew, against the dense step.

MLP 784-1024-1024-10, batch 256, Adam: the masks of `find_masks` in every step,
seen through `straight_through`. Medians are of ratios of steps that follow one
another; on a busy machine the fastest steps tell more.

    python examples/benchmarks/straight_through.py
"""

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jprune
from jprune.models import MLP

MODEL = MLP((1024, 1024, 10))


def make_step(view: Callable[[Any], Any]) -> Callable[..., Any]:
    """A jitted step whose loss sees ``view(params)``."""
    tx = optax.adam(1e-3)

    @jax.jit
    def step(params: Any, state: Any, x: Any, y: Any) -> Any:
        def loss(params: Any) -> Any:
            logits = MODEL.apply(view(params), x)
            return optax.softmax_cross_entropy_with_integer_labels(
                logits, y
            ).mean()

        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    return step


def through(allocation: Any, sparsity: float) -> Callable[[Any], Any]:
    def view(params: Any) -> Any:
        masks = jprune.find_masks(params, sparsity, allocation=allocation)
        return jprune.straight_through(params, masks)

    return view


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--sparsity", type=float, default=0.9)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((options.batch, 784), np.float32))
    y = jnp.asarray(rng.integers(0, 10, options.batch))
    params = MODEL.init(jax.random.key(0), x)
    state = optax.adam(1e-3).init(params)
    fixed = jprune.find_masks(params, options.sparsity)
    views = {
        "dense": lambda params: params,
        "straight-through, masks fixed": lambda params: jprune.straight_through(
            params, fixed
        ),
        "straight-through, uniform": through(
            jprune.allocations.uniform(), options.sparsity
        ),
        "straight-through, one ranking": through(
            jprune.allocations.global_ranking(), options.sparsity
        ),
    }
    steps = {name: make_step(view) for name, view in views.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(options.rounds + 1):
        for name, step in steps.items():
            begin = time.perf_counter()
            jax.block_until_ready(step(params, state, x, y))
            if turn:  # the first call compiles
                times[name].append(time.perf_counter() - begin)
    print(
        f"{os.cpu_count()} cores, jax {jax.__version__}, {jax.devices()[0]}\n"
    )
    print("| step | ms, median | against dense | ms, fastest | against dense |")
    print("|---|---|---|---|---|")
    dense = np.array(times["dense"])
    for name, took in times.items():
        ratios = np.array(took) / dense
        print(
            f"| {name} | {1e3 * np.median(took):.1f} "
            f"| {np.median(ratios):.2f}x "
            f"| {1e3 * min(took):.1f} | {min(took) / min(dense):.2f}x |"
        )


if __name__ == "__main__":
    main()
