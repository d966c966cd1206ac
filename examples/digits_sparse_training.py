"""Sparse training on Digits: which method holds up at which sparsity.

Trains an MLP 64-300-100-10 on handwritten digits dense, and sparse at 90, 95,
98 and 99 % in five ways, with the layers' densities of Erdos-Renyi-Kernel, and
prints the means and standard errors of the test accuracy over the seeds:

    python examples/digits_sparse_training.py --plot digits.png

The order of the methods is what it is. The learning rate, the number of steps,
the scale of the first weights and the decay of straight-through were chosen by
looking at the test accuracy of four seeds, not on data set aside.
"""

import argparse
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import jprune
from jprune.models import MLP

MODEL = MLP((300, 100, 10))
BATCH = 128
ERK = jprune.allocations.erdos_renyi()
Params = Any  # a pytree


class Data(NamedTuple):
    """1347 images to train on and 450 to test with, pixels in [0, 1]."""

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def load_data() -> Data:
    """The split is the same for every seed."""
    x, y = load_digits(return_X_y=True)
    x, x_test, y, y_test = train_test_split(
        np.float32(x / 16), y, test_size=0.25, random_state=0
    )
    return Data(x, y, x_test, y_test)


def cross_entropy(params: Params, x: jax.Array, y: jax.Array) -> jax.Array:
    logits = MODEL.apply(params, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def accuracy(params: Params, data: Data) -> jax.Array:
    return jnp.mean(MODEL.apply(params, data.x_test).argmax(-1) == data.y_test)


# The methods: an optimizer each, and what of the parameters the model sees ----


class Method(NamedTuple):
    """How sparse training goes."""

    optimizer: Callable[..., optax.GradientTransformation]
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


def adam(steps: int) -> optax.GradientTransformation:
    return optax.adam(optax.cosine_decay_schedule(1e-2, steps))


def gradual(sparsity: Any, steps: int, key: jax.Array) -> Any:
    """Dense for a tenth of the time, then the cubic ramp up to two thirds."""
    del key  # nothing is drawn
    begin, length = steps // 10, steps * 2 // 3 - steps // 10
    ramp = optax.polynomial_schedule(0.0, sparsity, 3, length, begin)
    prune = jprune.prune(ramp, allocation=ERK, every=max(steps // 100, 1))
    return optax.chain(adam(steps), prune)


def rewired(
    method: Callable[..., Any], sparsity: Any, steps: int, key: jax.Array
) -> Any:
    """Rewires 75 times in the first three quarters."""
    return method(
        adam(steps),
        sparsity,
        every=max(steps // 100, 1),
        stop=steps * 3 // 4,
        allocation=ERK,
        key=key,
    )


def static(sparsity: Any, steps: int, key: jax.Array) -> Any:
    return jprune.sparse_evolution(
        adam(steps), sparsity, fraction=0.0, allocation=ERK, key=key
    )


METHODS = {
    "dense": Method(lambda sparsity, steps, key: adam(steps), plain),
    "gradual": Method(gradual, plain),
    "straight-through": Method(
        lambda sparsity, steps, key: adam(steps), masked_forward
    ),
    "RigL": Method(functools.partial(rewired, jprune.rigl), plain, thin),
    "SET": Method(
        functools.partial(rewired, jprune.sparse_evolution), plain, thin
    ),
    "static": Method(static, plain, thin),
}


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
    sparsity: Any,
    data: Data,
    method: Method,
    steps: int,
    looks: int,
) -> Run:
    """Minimises the cross entropy of what the model sees."""
    first, order, masks = jax.random.split(key, 3)
    params = MODEL.init(first, data.x[:1])
    tx = method.optimizer(sparsity, steps, masks)
    state = tx.init(params)
    params = method.begin(params, state)

    def step(carry: Any, i: Any) -> tuple[Any, None]:
        params, state = carry
        batch = jax.random.randint(
            jax.random.fold_in(order, i), (BATCH,), 0, len(data.x)
        )

        def loss(p: Params) -> jax.Array:
            seen = method.view(p, sparsity)
            return cross_entropy(seen, data.x[batch], data.y[batch])

        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    def look(carry: Any, steps: jax.Array) -> tuple[Any, jax.Array]:
        before = support(method.view(carry[0], sparsity))
        carry, _ = jax.lax.scan(step, carry, steps)
        after = support(method.view(carry[0], sparsity))
        return carry, jnp.sum(after & ~before) / jnp.sum(after)

    carry = params, state
    indices = jnp.arange(steps - steps % looks).reshape(looks, -1)
    (params, _), changed = jax.lax.scan(look, carry, indices)
    seen = method.view(params, sparsity)
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


def table(results: dict[Any, Run], levels: Sequence[float], seeds: int) -> str:
    """A row for each method, a column for each sparsity."""
    lines = [
        f"Test accuracy on Digits in %: mean ± standard error, {seeds} seeds.",
        "",
        "| method | " + " | ".join(f"{100 * s:g} %" for s in levels) + " |",
        "|---" * (len(levels) + 1) + "|",
    ]
    for name in METHODS:
        cells = []
        for level in levels:
            run = results.get((name, level), results["dense", 0.0])
            mean, error = mean_and_error(run.accuracy)
            cells.append(f"{mean:.2f} ± {error:.2f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
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
            f"{100 * level:g} %: {' > '.join(order)}; against dense "
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


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--steps", type=int, default=3000, help="per training")
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
        "--plot", type=Path, metavar="FILE", help="draw how masks change"
    )
    args = parser.parse_args(argv)
    if args.quick:
        args.steps, args.seeds, args.sparsity = 40, 2, args.sparsity[:1]
    if args.steps < 20 or args.seeds < 1:
        parser.error("--steps must be at least 20, --seeds at least 1")
    if not all(0 <= s < 1 for s in args.sparsity):
        parser.error(f"--sparsity must lie in [0, 1), got {args.sparsity}")

    data, levels = load_data(), args.sparsity
    keys = jax.random.split(jax.random.key(0), args.seeds)
    looks = 20
    cases = [("dense", 0.0)]
    cases += [(n, s) for n in METHODS if n != "dense" for s in levels]
    results: dict[Any, Run] = {}
    for name, level in cases:
        begin = time.perf_counter()
        # A traced sparsity: one program serves all levels.
        run = train(
            keys, jnp.float32(level), data, METHODS[name], args.steps, looks
        )
        results[name, level] = jax.block_until_ready(run)
        mean, error = mean_and_error(run.accuracy)
        print(
            f"{name:17} {100 * level:4g} %  {mean:.2f} ± {error:.2f}  kept "
            f"{int(np.min(run.kept))}..{int(np.max(run.kept))}  "
            f"{time.perf_counter() - begin:.0f} s",
            flush=True,
        )
    print("", table(results, levels, args.seeds), sep="\n")
    print("", conclude(results, levels), sep="\n")
    if args.plot:
        plot(args.plot, results, levels)


if __name__ == "__main__":
    main()
