"""`compress` finds the smallest network of digits for a loss of two points.

    python examples/automatic.py --plot automatic.png

Two networks 64-256-128-10 learn scikit-learn's digits: one by Adam alone, one
in a ball of small norm, `project_frobenius_ball`. Then `compress` makes each as
small as it can, by repair alone. The judges are 897 digits that nothing was
fitted to. Finally the models are timed.
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import jprune
from jprune.models import MLP

MODEL = MLP((256, 128, 10))
STEPS = 1000


def load() -> list[np.ndarray]:
    """Images to learn from and to judge by, pixels from 0 to 1; and digits."""
    x, y = load_digits(return_X_y=True)
    x = x.astype(np.float32) / 16
    return train_test_split(x, y, test_size=897, random_state=0, stratify=y)


def train(tx: optax.GradientTransformation, x: Any, y: Any) -> Any:
    """Trained parameters."""
    params = MODEL.init(jax.random.key(0), x[:1])

    def loss(params: Any, x: Any, y: Any) -> jax.Array:
        logits = MODEL.apply(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @jax.jit
    def step(params: Any, state: Any, rows: Any) -> Any:
        grads = jax.grad(loss)(params, x[rows], y[rows])
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        params, state = step(params, state, rng.integers(0, len(y), 64))
    return params


def right(logits: Any, x: Any, y: Any) -> Any:
    """Of each digit whether it was read."""
    return logits.argmax(-1) == y


def main() -> None:
    """Trains, compresses, and prints what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plot", type=Path, metavar="FILE")
    parser.add_argument("--radius", type=float, default=17.0)
    args = parser.parse_args()
    x, x_held, y, y_held = load()
    x, y = jnp.asarray(x), jnp.asarray(y)
    adam = optax.adam(optax.cosine_decay_schedule(2e-3, STEPS))
    ball = optax.chain(adam, jprune.project_frobenius_ball(args.radius))
    fronts = {}
    for name, tx in (("Adam", adam), ("Adam in the ball", ball)):
        params = train(tx, x, y)
        norm = float(optax.tree.norm(params))
        print(f"\n# {name}: |W|_F = {norm:.1f}\n")
        result = jprune.compress(
            MODEL.apply,
            params,
            [(x, y)],
            inputs=1,
            holdout=[(x_held, y_held)],
            score=right,
            tolerance=0.02,
        )
        print(f"{result.front}\n\n{result}")
        fronts[name], small = result.front, result.small
        models = {
            "dense": (MODEL.apply, params),
            "small": (small.fn, small.params),
        }
    print("\n# The last network on 897 digits")
    print(jprune.report.speed(models, jnp.asarray(x_held)))
    if args.plot:
        from matplotlib import pyplot

        axes = pyplot.subplots(figsize=(7, 4), layout="constrained")[1]
        for name, front in fronts.items():
            jprune.plot.front(front, label=name, ax=axes)
        axes.set_xscale("log")
        axes.legend(fontsize="small")
        axes.figure.savefig(args.plot, dpi=100)


if __name__ == "__main__":
    main()
