"""A network is pruned and repaired, and stored as int8 by qwix.

    python -m pip install -e ".[examples]"
    python examples/quantize.py

A perceptron learns scikit-learn's digits. `jprune.one_shot` removes 80 % of
its weights and repairs the rest from 512 training images, once without a grid
and once with a grid of integers. With a grid, later weights make up for the
rounding of earlier ones. `qwix` then stores the kernels as int8 and runs the
model. The table shows accuracies, and how many stored integers are 0: all
pruned weights, exactly, and some kept ones that round to 0.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import qwix
from common import digits, flags
from one_shot import trained
from tqdm import tqdm

import jprune
from jprune import grids
from jprune.models import MLP


def quantized(model: Any, params: Any, x: Any) -> tuple[Any, Any]:
    """The model and its parameters with kernels of int8, by qwix."""
    rules = [qwix.QuantizationRule(module_path=".*", weight_qtype=jnp.int8)]
    small = qwix.quantize_model(model, qwix.PtqProvider(rules))
    shapes = jax.eval_shape(small.init, jax.random.key(0), x)
    stored = qwix.quantize_params(params["params"], shapes["params"])
    return small, {"params": stored}


def integers(stored: Any) -> list[np.ndarray]:
    """The kernels as qwix holds them."""
    return [np.asarray(x) for x in jax.tree.leaves(stored) if x.dtype == "int8"]


def main() -> dict[str, tuple[float, float, int]]:
    """Prints the table; returns its rows."""
    args = flags(
        __doc__,
        steps=(1500, "steps of Adam"),
        seed=(0, "of all"),
    )
    data = digits()
    x, y, x_test = map(jnp.asarray, (data.x, data.y, data.x_test))
    model, seen = MLP((128, 64, 10)), x[:512]
    params = trained(model, x, y, args.steps, args.seed)

    def accuracy(model: Any, params: Any) -> float:
        guess = jnp.argmax(model.apply(params, x_test), -1)
        return 100 * float(np.mean(np.asarray(guess) == data.y_test))

    rules = {
        "80 % pruned": None,
        "80 % pruned, on a grid": grids.integer(8),
        "80 % pruned, 4 bits": grids.integer(4),
    }
    results: dict[str, tuple[Any, Any]] = {"dense": (params, {})}
    for name, grid in tqdm(rules.items(), desc="one shot"):
        found = jprune.one_shot(model.apply, params, [seen], 0.8, grid=grid)
        results[name] = found.params, found.masks
    rows = {}
    print(f"{'':24}{'float32':>9}{'int8':>9}{'zeros':>16}{'pruned':>9}")
    for name, (now, masks) in results.items():
        small, stored = quantized(model, now, seen[:1])
        kernels = integers(stored)
        zeros, many = (sum(map(f, kernels)) for f in (count_zeros, np.size))
        pruned = sum(int((~m).sum()) for m in jax.tree.leaves(masks))
        rows[name] = accuracy(model, now), accuracy(small, stored), zeros
        print(
            f"{name:24}{rows[name][0]:>7.1f} %{rows[name][1]:>7.1f} %"
            f"{f'{zeros} of {many}':>16}{pruned:>9}"
        )
    return rows


def count_zeros(kernel: np.ndarray) -> int:
    return int((kernel == 0).sum())


if __name__ == "__main__":
    rows = main()
