"""Sparse training on Digits: which method holds up at which sparsity.

Trains an MLP 64-300-100-10 on handwritten digits dense, and sparse at 90, 95,
98 and 99 % in five ways, with the layers' densities of Erdos-Renyi-Kernel, and
prints the means and standard errors of the test accuracy over the seeds:

    python examples/digits_sparse_training.py --plot digits.png

The order of the methods is what it is. Each has, for each sparsity, the
learning rate that was best on a quarter of the training images, in this run
without a look at the test images:

    python docs/run_examples.py digits_validation

The scale of the first weights and the decay of straight-through are older: they
were chosen by looking at the test accuracy of four seeds.
"""

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import jprune
from jprune.models import MLP

MODEL = MLP((300, 100, 10))
BATCH = 128
LOOKS = 20  # at the masks, while a network is trained
ERK = jprune.allocations.erdos_renyi()
Params = Any  # a pytree


class Data(NamedTuple):
    """Images to train on and to test with, pixels in [0, 1]."""

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def load_data() -> Data:
    """1347 images to train on, 450 to test with; the same for every seed."""
    x, y = load_digits(return_X_y=True)
    return split(np.float32(x / 16), y)


def split(x: np.ndarray, y: np.ndarray) -> Data:
    """Sets a quarter aside."""
    x, x_test, y, y_test = train_test_split(
        x, y, test_size=0.25, random_state=0
    )
    return Data(x, y, x_test, y_test)


def cross_entropy(params: Params, x: jax.Array, y: jax.Array) -> jax.Array:
    logits = MODEL.apply(params, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def accuracy(params: Params, data: Data) -> jax.Array:
    return jnp.mean(MODEL.apply(params, data.x_test).argmax(-1) == data.y_test)


# The methods: an optimizer each, and what of the parameters the model sees ----


class Setting(NamedTuple):
    """What is the same for every seed."""

    sparsity: Any
    rate: Any  # of the first step


class Method(NamedTuple):
    """How sparse training goes."""

    optimizer: Callable[[Setting, int, jax.Array], Any]
    view: Callable[[Params, Any], Params]  # params, sparsity -> what is run
    begin: Callable[[Params, Any], Params] = lambda params, state: params


def plain(params: Params, sparsity: Any) -> Params:
    del sparsity  # the optimizer sees to it
    return params


def thin(params: Params, state: Any) -> Params:
    """What the masks keep, larger, so that signals are of the size they had.

    As in Evci et al., Gradient flow in sparse neural networks, 2022, section
    3.1, with a factor per layer.
    """
    masks = jprune.get_masks(state)
    sparse = jprune.apply_masks(params, masks)

    def leaf(mask: Any, p: jax.Array) -> jax.Array:
        if isinstance(mask, optax.MaskedNode):
            return p
        return p * jax.lax.rsqrt(jnp.mean(mask, dtype=p.dtype))

    return jax.tree.map(
        leaf, masks, sparse, is_leaf=lambda x: isinstance(x, optax.MaskedNode)
    )


def masked_forward(params: Params, sparsity: Any) -> Params:
    """Chosen anew in every step; the gradient passes straight through."""
    masks = jprune.find_masks(params, sparsity, allocation=ERK)
    return jprune.straight_through(params, masks, decay=2e-4)  # SR-STE


def adam(setting: Setting, steps: int, key: Any = None) -> Any:
    del key  # nothing is drawn
    return optax.adam(optax.cosine_decay_schedule(setting.rate, steps))


def gradual(setting: Setting, steps: int, key: jax.Array) -> Any:
    """Dense for a tenth of the time, then the cubic ramp up to two thirds."""
    begin, length = steps // 10, steps * 2 // 3 - steps // 10
    ramp = optax.polynomial_schedule(0.0, setting.sparsity, 3, length, begin)
    prune = jprune.prune(ramp, allocation=ERK, every=max(steps // 100, 1))
    return optax.chain(adam(setting, steps, key), prune)


def rewired(
    method: Callable[..., Any], setting: Setting, steps: int, key: jax.Array
) -> Any:
    """Rewires 75 times in the first three quarters."""
    return method(
        adam(setting, steps),
        setting.sparsity,
        every=max(steps // 100, 1),
        stop=steps * 3 // 4,
        allocation=ERK,
        key=key,
    )


rigl = functools.partial(rewired, jprune.rigl)
evolution = functools.partial(rewired, jprune.sparse_evolution)
static = functools.partial(
    rewired, functools.partial(jprune.sparse_evolution, fraction=0.0)
)

METHODS = {
    "dense": Method(adam, plain),
    "gradual": Method(gradual, plain),
    "straight-through": Method(adam, masked_forward),
    "RigL": Method(rigl, plain, thin),
    "SET": Method(evolution, plain, thin),
    "static": Method(static, plain, thin),
}
RATES = [3e-3, 1e-2, 3e-2]  # to choose from
CHOSEN = {  # the best of `--validate` for each sparsity
    "dense": {0.0: 3e-2},
    "gradual": {0.9: 1e-2, 0.95: 1e-2, 0.98: 1e-2, 0.99: 1e-2},
    "straight-through": {0.9: 3e-2, 0.95: 3e-3, 0.98: 1e-2, 0.99: 3e-2},
    "RigL": {0.9: 1e-2, 0.95: 1e-2, 0.98: 3e-2, 0.99: 3e-2},
    "SET": {0.9: 3e-3, 0.95: 3e-3, 0.98: 1e-2, 0.99: 3e-2},
    "static": {0.9: 3e-2, 0.95: 3e-2, 0.98: 3e-2, 0.99: 3e-3},
}


def chosen_rate(name: str, sparsity: float) -> float:
    """Of the nearest sparsity that was validated."""
    rates = CHOSEN[name]
    return rates[min(rates, key=lambda level: abs(level - sparsity))]


# One training function, mapped over the seeds ---------------------------------


class Run(NamedTuple):
    """The end of a training, and what changed on the way."""

    accuracy: jax.Array
    kept: jax.Array  # weights of the kernels that are not 0, at the end
    changed: jax.Array  # fraction of the kept weights new since the last look


@functools.partial(jax.jit, static_argnames=("method", "steps", "looks"))
@functools.partial(jax.vmap, in_axes=(0, None, None, None, None, None))
def train(
    key: jax.Array,
    setting: Setting,
    data: Data,
    method: Method,
    steps: int,
    looks: int,
) -> Run:
    """Minimises the cross entropy of what the model sees."""
    first, order, masks = jax.random.split(key, 3)
    params = MODEL.init(first, data.x[:1])
    tx = method.optimizer(setting, steps, masks)
    state = tx.init(params)
    params = method.begin(params, state)

    def step(carry: Any, i: Any) -> tuple[Any, None]:
        params, state = carry
        batch = jax.random.randint(
            jax.random.fold_in(order, i), (BATCH,), 0, len(data.x)
        )

        def loss(p: Params) -> jax.Array:
            seen = method.view(p, setting.sparsity)
            return cross_entropy(seen, data.x[batch], data.y[batch])

        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    def look(carry: Any, steps: jax.Array) -> tuple[Any, jax.Array]:
        before = support(method.view(carry[0], setting.sparsity))
        carry, _ = jax.lax.scan(step, carry, steps)
        after = support(method.view(carry[0], setting.sparsity))
        return carry, jnp.sum(after & ~before) / jnp.sum(after)

    carry = params, state
    indices = jnp.arange(steps - steps % looks).reshape(looks, -1)
    (params, _), changed = jax.lax.scan(look, carry, indices)
    seen = method.view(params, setting.sparsity)
    return Run(accuracy(seen, data), jnp.sum(support(seen)), changed)


def support(params: Params) -> jax.Array:
    """Which kernel entries are not 0."""
    layers = params["params"].values()
    return jnp.concatenate([w["kernel"].ravel() != 0 for w in layers])


# What came out ----------------------------------------------------------------


def mean_and_error(scores: Any) -> tuple[float, float]:
    """In percent; the standard error of the mean, 0 for one seed."""
    scores = 100 * np.asarray(scores, float)
    spread = scores.std(ddof=1) if scores.size > 1 else 0.0
    return float(scores.mean()), float(spread / np.sqrt(scores.size))


def table(head: Sequence[str], cells: dict[str, Sequence[Any]]) -> str:
    """A row for each method, of means and their standard errors."""
    lines = ["| method | " + " | ".join(head) + " |"]
    lines.append("|---" * (len(head) + 1) + "|")
    for name, row in cells.items():
        found = [mean_and_error(scores) for scores in row]
        text = " | ".join(f"{mean:.2f} ± {error:.2f}" for mean, error in found)
        lines.append(f"| {name} | {text} |")
    return "\n".join(lines)


def conclude(results: dict[Any, Run], levels: Sequence[float]) -> str:
    """The order found, and how it stands against the dense network."""
    dense, _ = mean_and_error(results["dense", 0.0].accuracy)
    lines = []
    for level in levels:
        means = {
            name: mean_and_error(results[name, level].accuracy)[0]
            for name in METHODS
            if name != "dense"
        }
        order = sorted(means, key=means.__getitem__, reverse=True)
        best, worst = order[0], order[-1]
        lines.append(
            f"- {100 * level:g} %: {' > '.join(order)}; against dense "
            f"{means[best] - dense:+.2f} to {means[worst] - dense:+.2f} points."
        )
    return "\n".join(lines)


def plot(path: Path, results: dict[Any, Run], levels: Sequence[float]) -> None:
    """How many of the kept weights are new, over the time of training."""
    from matplotlib.figure import Figure

    figure = Figure((3.2 * len(levels), 3), layout="constrained")
    axes = figure.subplots(1, len(levels), sharey=True, squeeze=False)[0]
    for axis, level in zip(axes, levels, strict=True):
        for name in METHODS:
            if name != "dense":
                changed = np.mean(results[name, level].changed, axis=0)
                times = (np.arange(changed.size) + 1) / changed.size
                axis.plot(100 * times, 100 * changed, label=name, lw=1)
        axis.set(title=f"{100 * level:g} % sparse", xlabel="% of training")
    axes[0].set_ylabel("% of kept weights that are new")
    axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=100)


def run_all(
    args: Any, data: Data, rate: Callable[[str, float], float]
) -> dict[Any, Run]:
    """Every method at every sparsity, with progress on stderr."""
    keys = jax.random.split(jax.random.key(0), args.seeds)
    cases = [("dense", 0.0)]
    cases += [(n, s) for n in METHODS if n != "dense" for s in args.sparsity]
    results: dict[Any, Run] = {}
    progress = tqdm(cases)
    for name, level in progress:
        # Traced numbers: one program serves all levels and rates.
        setting = Setting(jnp.float32(level), jnp.float32(rate(name, level)))
        run = train(keys, setting, data, METHODS[name], args.steps, LOOKS)
        results[name, level] = jax.block_until_ready(run)
        mean, error = mean_and_error(run.accuracy)
        progress.write(
            f"{name:17} {100 * level:4g} %  {mean:.2f} ± {error:.2f}  kept "
            f"{int(np.min(run.kept))}..{int(np.max(run.kept))}",
            file=sys.stderr,
        )
    return results


def test(args: Any) -> None:
    """What the documentation shows."""
    levels = args.sparsity
    results = run_all(args, load_data(), chosen_rate)
    cells = {
        name: [
            results.get((name, level), results["dense", 0.0]).accuracy
            for level in levels
        ]
        for name in METHODS
    }
    print(
        "Test accuracy on Digits in %: mean ± standard error, "
        f"{args.seeds} seeds, {args.steps:,} steps.\n"
    )
    print(table([f"{100 * s:g} %" for s in levels], cells))
    print("", conclude(results, levels), sep="\n")
    if args.plot:
        plot(args.plot, results, levels)


def validate(args: Any) -> None:
    """Learning rates, chosen without a look at the test images."""
    data = load_data()
    data = split(data.x, data.y)
    runs = [run_all(args, data, lambda *_, r=rate: r) for rate in RATES]
    cells: dict[str, list[Any]] = {}
    best: dict[str, list[str]] = {}
    for name, level in runs[0]:
        row = [results[name, level].accuracy for results in runs]
        cells[f"{name} | {100 * level:g} %"] = row
        rate = RATES[int(np.argmax(np.mean(row, axis=-1)))]
        best.setdefault(name, []).append(f"{rate:g}")
    print(
        "Validation accuracy on Digits in %: mean ± standard error, "
        f"{args.seeds} seeds, {args.steps:,} steps.\n"
    )
    print(table(["sparsity", *(f"rate {rate:g}" for rate in RATES)], cells))
    print("\nBest rates, by sparsity:\n")
    print("\n".join(f"- {n}: {', '.join(row)}" for n, row in best.items()))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--steps", type=int, default=2000, help="per training")
    parser.add_argument("--seeds", type=int, default=10, help="per mean")
    parser.add_argument(
        "--sparsity",
        type=float,
        nargs="+",
        default=[0.9, 0.95, 0.98, 0.99],
        help="of the kernels",
    )
    parser.add_argument(
        "--quick", action="store_true", help="40 steps, 2 seeds, one sparsity"
    )
    parser.add_argument(
        "--validate",
        action="store_true",
        help="compare learning rates on a quarter of the training images",
    )
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw how masks change"
    )
    args = parser.parse_args(argv)
    if args.quick:
        args.steps, args.seeds, args.sparsity = 40, 2, args.sparsity[:1]
    if args.steps < 20 or args.seeds < 1:
        parser.error("--steps must be at least 20, --seeds at least 1")
    if not all(0 <= s < 1 for s in args.sparsity):
        parser.error(f"--sparsity must lie in [0, 1), got {args.sparsity}")
    (validate if args.validate else test)(args)


if __name__ == "__main__":
    main()
