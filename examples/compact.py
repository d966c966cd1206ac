"""A network of digits: its units are pruned and removed, and it is timed.

Trains an MLP on scikit-learn's digits, prunes whole units while it trains on,
removes them, and prints what is left beside the dense model, with latencies as
measured on this machine:

    python examples/compact.py
"""

import argparse
import io
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import jprune
from jprune.models import MLP

MODEL = MLP((300, 100, 10))
BATCHES = (1, 32, 256)


def load_data() -> tuple[np.ndarray, ...]:
    """Images in [0, 1], a quarter of them to test with."""
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    return tuple(train_test_split(x, y, test_size=0.25, random_state=0))


def train(
    params: Any, tx: Any, x: np.ndarray, y: np.ndarray, epochs: int
) -> tuple[Any, Any]:
    """Cross-entropy in batches of 64; parameters and optimizer state."""

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        logits = MODEL.apply(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @jax.jit
    def epoch(carry: Any, batches: Any) -> Any:
        def step(carry: Any, batch: Any) -> Any:
            params, state = carry
            grads = jax.grad(loss)(params, *batch)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, carry, batches)[0]

    carry, rng = (params, tx.init(params)), np.random.default_rng(0)
    for _ in range(epochs):
        order = rng.permutation(len(x))[: len(x) // 64 * 64].reshape(-1, 64)
        carry = epoch(carry, (x[order], y[order]))
    return carry


def saved(params: Any) -> int:
    """Bytes of the parameters in a file of NumPy's."""
    file = io.BytesIO()
    np.savez(file, *map(np.asarray, jax.tree.leaves(params)))
    return file.getbuffer().nbytes


def latencies(models: dict[str, tuple[Any, Any]], rounds: int) -> Any:
    """Median milliseconds by model and batch, the models taking turns."""
    found: dict[str, list[float]] = {name: [] for name in models}
    for batch in BATCHES:
        x = jnp.ones((batch, 64))
        times: dict[str, list[float]] = {name: [] for name in models}
        for turn in range(rounds + 1):
            for name, (fn, params) in models.items():
                begin = time.perf_counter()
                for _ in range(10):
                    y = fn(params, x)
                y.block_until_ready()
                if turn:  # the first call compiles
                    times[name].append((time.perf_counter() - begin) * 100)
        for name, t in times.items():
            found[name].append(float(np.median(t)))
    return found


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=100)
    options = parser.parse_args()
    begin = time.perf_counter()
    x, x_test, y, y_test = load_data()
    image = jnp.ones((1, 64))
    start = MODEL.init(jax.random.key(0), image)
    dense, _ = train(start, optax.adamw(2e-3), x, y, options.epochs)
    graph = jprune.trace_units(MODEL.apply, dense, image)
    print(f"{graph}\n")

    steps = options.epochs * (len(x) // 64)
    models: dict[str, tuple[Any, Any]] = {
        "dense": (jax.jit(MODEL.apply), dense)
    }
    for sparsity in (0.25, 0.5, 0.75, 0.9):
        schedule = optax.polynomial_schedule(0.0, sparsity, 3, steps // 2)
        pruner = jprune.prune(schedule, structure=jprune.units(graph), every=10)
        tx = optax.chain(optax.adamw(2e-3), pruner)
        params, state = train(dense, tx, x, y, options.epochs)
        masks = jprune.get_masks(state)
        small = jprune.compact(MODEL.apply, params, image, masks=masks)
        print(f"{sparsity:.0%} of the units: {small.certify(x_test[:32])}")
        rebuilt = MLP.from_params(small.params)
        models[f"{sparsity:.0%}"] = (jax.jit(rebuilt.apply), small.params)

    times = latencies(models, options.rounds)
    head = "".join(f"{f'ms at {b}':>12}{'speed-up':>10}" for b in BATCHES)
    print(
        f"\n{'units':8}{'accuracy':>9}{'parameters':>12}{'bytes':>9}"
        f"{'products':>10}{head}"
    )
    slower = []
    for name, (fn, params) in models.items():
        right = jnp.argmax(fn(params, x_test), -1) == y_test
        count = jprune.report.cost(fn, params, image).dense
        cells = ""
        for batch, t, before in zip(
            BATCHES, times[name], times["dense"], strict=True
        ):
            cells += f"{t:>12.4f}{before / t:>10.2f}"
            if name != "dense" and before / t < 1.05:
                slower.append(f"{name} at batch {batch}")
        print(
            f"{name:8}{float(right.mean()):>9.1%}{count.parameters:>12,}"
            f"{saved(params):>9,}{count.multiply_adds:>10,}{cells}"
        )
    if slower:
        print(f"\nNot faster than dense by 5 %: {', '.join(slower)}.")
    else:
        print("\nEach is faster than dense by more than 5 %.")
    print(f"{time.perf_counter() - begin:.0f} s in all.")


if __name__ == "__main__":
    main()
