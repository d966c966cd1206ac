"""A trained model is pruned and repaired without training, and compacted.

    python examples/one_shot.py

A perceptron learns scikit-learn's digits (64-128-64-10, a quarter of the images
for testing). Then weights and whole units are removed in two ways: by magnitude
alone, and by `jprune.one_shot`. That looks at 512 training images, without
their labels, and changes the weights that stay so that each layer gives the
outputs that it gave. The model without half of its units is compacted and
certified.
"""

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import jprune
from jprune import report
from jprune.models import MLP


def trained(
    model: Any, x: jax.Array, y: jax.Array, steps: int, seed: int
) -> Any:
    """Parameters after so many steps of Adam."""
    params = model.init(jax.random.key(seed), x[:1])
    tx = optax.adam(2e-3)

    def loss(params: Any, here: jax.Array) -> jax.Array:
        logits = model.apply(params, x[here])
        return optax.softmax_cross_entropy_with_integer_labels(
            logits, y[here]
        ).mean()

    def step(state: Any, key: jax.Array) -> tuple[Any, None]:
        params, moments = state
        here = jax.random.randint(key, (64,), 0, len(x))
        grads = jax.grad(loss)(params, here)
        updates, moments = tx.update(grads, moments, params)
        return (optax.apply_updates(params, updates), moments), None

    keys = jax.random.split(jax.random.key(seed + 1), steps)
    start = params, tx.init(params)
    (params, _), _ = jax.jit(lambda state: jax.lax.scan(step, state, keys))(
        start
    )
    return params


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Prints the table; returns its accuracies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    digits = load_digits()
    parts = train_test_split(
        jnp.asarray(digits.data / 16, jnp.float32),
        jnp.asarray(digits.target),
        test_size=0.25,
        stratify=digits.target,
        random_state=args.seed,
    )
    x, x_test, y, y_test = map(jnp.asarray, parts)
    model = MLP((128, 64, 10))
    params = trained(model, x, y, args.steps, args.seed)
    seen = x[:512]

    def accuracy(fn: Callable[..., jax.Array], params: Any) -> float:
        return 100 * float(
            jnp.mean(jnp.argmax(fn(params, x_test), -1) == y_test)
        )

    found = {"dense": accuracy(model.apply, params)}
    lines = [f"{'removed':24}{'magnitude':>10}{'one_shot':>10}"]
    graph = jprune.trace_units(model.apply, params, seen[:1])
    halves = jprune.units(graph)
    rows: list[tuple[str, float, dict[str, Any]]] = [
        ("80 % of the weights", 0.8, {}),
        ("90 % of the weights", 0.9, {}),
        ("50 % of the units", 0.5, {"structure": halves}),
    ]
    for name, sparsity, how in tqdm(rows, desc="one shot"):
        masks = jprune.find_masks(
            params,
            sparsity,
            allocation=jprune.allocations.uniform(),
            **how,
        )
        alone = accuracy(model.apply, jprune.apply_masks(params, masks))
        result = jprune.one_shot(model.apply, params, [seen], sparsity, **how)
        repaired = accuracy(model.apply, result.params)
        found[f"{name}, magnitude"], found[name] = alone, repaired
        lines.append(f"{name:24}{alone:>10.1f}{repaired:>10.1f}")

    print(f"dense: {found['dense']:.1f} %", "", *lines, sep="\n")
    print("\nwithout half of the units, errors of the outputs by layer:")
    print(result.errors)
    small = jprune.compact(model.apply, result.params, seen[:1])
    found["compact"] = accuracy(small.fn, small.params)
    print(f"\ncompact: {found['compact']:.1f} %")
    print(small.certify(x_test))
    print(report.cost(model.apply, params, x_test[:1], masks=result.masks))
    return found


if __name__ == "__main__":
    found = main()
