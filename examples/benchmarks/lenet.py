"""LeNet-300-100 and LeNet-5 on MNIST, the table that pruning papers share.

    python examples/benchmarks/lenet.py --data mnist.npz

A dense network learns by Adam. From there each recipe trains it for as many
epochs again (`--longer`: so many times as many), with fresh moments, while
weights are pruned:

- "gradual": a cubic schedule in the first half of the steps, masks chosen every
  50 steps by magnitude, or by magnitude times the norm of what it multiplies
  (`activation`); the allocation decides how many each layer keeps;
- "straight-through": the same schedule, and masks of every step; the loss sees
  the masked weights, and what is masked goes on learning; "no windows" divides
  by the inputs and outputs of a convolution alone, and "by hand" as `denser`
  of a network says: more for its convolutions, as DNS and Sparse VD have it;
- "RigL": sparse from its first weights on, for all the epochs;
- "repaired": pruned at once by `one_shot` with 1,024 images, then trained;
- "soft thresholds": half of the steps with a proximal step after each update,
  then the smallest of all weights go, and the others are trained on.

"and the dense model's outputs": the loss is the mean of the cross entropies
with the labels and with what the dense network says.

First all recipes train on 55,000 images and are judged on the other 5,000 of
the training set. The best one then trains on all 60,000, at several sparsities,
and only it sees the 10,000 test images. Errors are in percent, means over the
seeds with standard errors. "worst" is the error of the worst of the ten
classes, "noisy" the error with Gaussian noise on the pixels, of a standard
deviation of .2 where pixels go from 0 to 1.

Sparsities are of all kernels together; biases stay. `--data` is as in
`shrinking.py`. Of the published rows those of Han, DNS, SWS and
Sparse VD agree with the table that the authors of Sparse VD show at
https://github.com/bayesgroup/variational-dropout-sparsifies-dnn.
Those of SNIP, L-OBS and GSM are from memory of the papers' tables: check them
before you quote them.
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from served import mean
from shrinking import Data, load
from tqdm import tqdm

import jprune
from jprune.allocations import erdos_renyi, given, global_ranking, uniform
from jprune.models import MLP

BATCH = 128
RATE = 2e-3
NOISE = 0.2
VALIDATION = 5000


class LeNet5(nn.Module):
    """As Caffe has it: 20 and 50 filters, 500 hidden units."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps images ``[n, 784]`` to logits ``[n, 10]``."""
        x = x.reshape(-1, 28, 28, 1)
        for size in (20, 50):
            x = nn.Conv(size, (5, 5), padding="VALID")(x)
            # as nn.max_pool, whose gradient takes most of a step on a CPU
            x = jnp.maximum(x[:, ::2], x[:, 1::2])
            x = jnp.maximum(x[:, :, ::2], x[:, :, 1::2])
        x = nn.relu(nn.Dense(500)(x.reshape(x.shape[0], -1)))
        return nn.Dense(10)(x)


class Network(NamedTuple):
    """What is trained, for how long, and how far it is pruned."""

    module: nn.Module
    epochs: int  # of the dense training, and of a recipe's
    judged: float  # the sparsity at which recipes are compared
    sparsities: tuple[float, ...]
    denser: dict[str, float]  # layers than all together, divided by hand
    published: tuple[tuple[str, str, str, str], ...]


# Source, weights that are left in percent, error of the dense network, error.
NETWORKS = {
    "LeNet-300-100": Network(
        MLP((300, 100, 10)),
        20,
        0.98,
        (0.9, 0.95, 0.98, 0.985, 0.99),
        {"Dense_0": 0.824, "Dense_1": 1.95, "Dense_2": 13.7},
        (
            ("Han et al. 2015", "8.3", "1.64", "1.59"),
            ("SNIP, Lee et al. 2019", "5.0", "1.7", "1.6"),
            ("SWS, Ullrich et al. 2017", "4.3", "1.89", "1.94"),
            ("SNIP, Lee et al. 2019", "2.0", "1.7", "2.4"),
            ("DNS, Guo et al. 2016", "1.8", "2.28", "1.99"),
            ("GSM, Ding et al. 2019", "1.7", "1.81", "1.82"),
            ("L-OBS, iterative, Dong et al. 2017", "1.5", "1.76", "1.96"),
            ("Sparse VD, Molchanov et al. 2017", "1.5", "1.64", "1.92"),
        ),
    ),
    "LeNet-5": Network(
        LeNet5(),
        8,
        0.99,
        (0.98, 0.99, 0.995),
        {"Conv_0": 40.0, "Conv_1": 4.0, "Dense_0": 0.63, "Dense_1": 11.6},
        (
            ("Han et al. 2015", "8.3", "0.80", "0.77"),
            ("SNIP, Lee et al. 2019", "2.0", "0.9", "0.8"),
            ("SNIP, Lee et al. 2019", "1.0", "0.9", "1.1"),
            ("DNS, Guo et al. 2016", "0.9", "0.91", "0.91"),
            ("GSM, Ding et al. 2019", "0.8", "0.79", "0.78"),
            ("SWS, Ullrich et al. 2017", "0.5", "0.88", "0.97"),
            ("Sparse VD, Molchanov et al. 2017", "0.36", "0.80", "0.75"),
            ("GSM, Ding et al. 2019", "0.33", "0.79", "0.94"),
        ),
    ),
}


def pixels(x: Any) -> np.ndarray:
    """From 0 to 1."""
    return np.asarray(x) / np.float32(255)


class Dense(NamedTuple):
    """A trained network, and the images that it learned from."""

    fn: Callable[..., jax.Array]
    fresh: Any
    params: Any
    x: np.ndarray
    y: np.ndarray
    said: np.ndarray  # its probabilities for all images
    steps: int
    seed: int
    denser: dict[str, float]


def fit(
    fn: Any,
    tx: Any,
    params: Any,
    x: np.ndarray,
    targets: np.ndarray,
    steps: range,
    seed: int,
    view: Callable[[Any, Any], Any] = lambda params, step: params,
) -> tuple[Any, Any]:
    """Trains on targets that are probabilities; the state comes too.

    A ``view`` makes those that are used of parameters and the step's number.
    """

    @jax.jit
    def step(params: Any, state: Any, x: Any, wanted: Any, number: Any) -> Any:
        def loss(params: Any) -> jax.Array:
            logits = fn(view(params, number), x.astype(jnp.float32) / 255)
            return optax.softmax_cross_entropy(logits, wanted).mean()

        grads = jax.grad(loss)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for number in steps:
        rows = np.random.default_rng((seed, number)).integers(
            len(x), size=BATCH
        )
        params, state = step(params, state, x[rows], targets[rows], number)
    return params, state


def adam(steps: int) -> Any:
    """With a cosine of as many steps."""
    return optax.adam(optax.cosine_decay_schedule(RATE, steps))


def one_hot(y: np.ndarray) -> np.ndarray:
    return np.eye(10, dtype=np.float32)[y]


def train(network: Network, x: np.ndarray, y: np.ndarray, seed: int) -> Dense:
    """The dense network of a seed."""
    fn = network.module.apply
    steps = network.epochs * len(x) // BATCH
    fresh = network.module.init(jax.random.key(seed), jnp.zeros((1, 784)))
    params, _ = fit(fn, adam(steps), fresh, x, one_hot(y), range(steps), seed)
    said = outputs(fn, params, x)
    return Dense(fn, fresh, params, x, y, said, steps, seed, network.denser)


def outputs(fn: Any, params: Any, x: np.ndarray) -> np.ndarray:
    """Probabilities, a thousand images at a time."""
    run = jax.jit(lambda params, x: jax.nn.softmax(fn(params, x)))
    parts = np.split(x, range(1000, len(x), 1000))
    return np.concatenate([run(params, pixels(part)) for part in parts])


class Errors(NamedTuple):
    """In percent."""

    mean: float
    worst: float  # of the worst class
    noisy: float


def errors(fn: Any, params: Any, x: np.ndarray, y: np.ndarray) -> Errors:
    """Of labelled images."""
    wrong = outputs(fn, params, x).argmax(-1) != y
    noise = np.random.default_rng(0).normal(size=x.shape) * NOISE * 255
    noisy = outputs(fn, params, x + noise.astype(np.float32)).argmax(-1) != y
    classes = [wrong[y == digit].mean() for digit in range(10)]
    return Errors(*(100 * np.array([wrong.mean(), max(classes), noisy.mean()])))


Recipe = Callable[[Dense, float], Any]  # parameters, some of them 0


def gradual(
    allocation: Any, active: bool = False, taught: bool = False
) -> Recipe:
    """More and more go while the network is trained."""

    def run(dense: Dense, sparsity: float) -> Any:
        ramp = optax.polynomial_schedule(
            0.0, sparsity, 3, dense.steps // 2, dense.steps // 50
        )
        pruner = jprune.prune(
            ramp,
            criterion=criterion_of(dense, active),
            allocation=allocation,
            every=50,
        )
        return tuned(dense, dense.params, pruner, taught)

    return run


def tuned(dense: Dense, params: Any, pruner: Any, taught: bool = False) -> Any:
    """Trained, and what the pruner masks is 0."""
    targets = one_hot(dense.y)
    if taught:
        targets = (targets + dense.said) / 2
    tx = optax.chain(adam(dense.steps), pruner)
    later = range(dense.steps, 2 * dense.steps)
    return fit(dense.fn, tx, params, dense.x, targets, later, dense.seed)[0]


# An allocation, and the last sparsity that it is asked for.
Rule = Callable[[Dense, float], tuple[Any, float]]


def by_size(kernel: bool) -> Rule:
    """Erdos-Renyi."""
    return lambda dense, sparsity: (
        erdos_renyi(kernel, target=sparsity),
        sparsity,
    )


def by_ranking(dense: Dense, sparsity: float) -> tuple[Any, float]:
    """All weights in one ranking."""
    return global_ranking(), sparsity


def by_hand(dense: Dense, sparsity: float) -> tuple[Any, float]:
    """As `denser` says: the last shares, so it is asked for a sparsity of 1."""
    left = 1 - sparsity
    shares = {
        f"{name}/kernel": max(0.0, 1 - times * left)
        for name, times in dense.denser.items()
    }
    return given(shares), 1.0


def straight_through(rule: Rule, active: bool = True) -> Recipe:
    """Masks of every step: what is masked goes on learning, and may return."""

    def run(dense: Dense, sparsity: float) -> Any:
        allocation, last = rule(dense, sparsity)
        ramp = optax.polynomial_schedule(
            0.0, last, 3, dense.steps // 2, dense.steps
        )
        find = partial(
            jprune.find_masks,
            criterion=criterion_of(dense, active),
            allocation=allocation,
        )

        def view(params: Any, step: Any) -> Any:
            masks = find(params, ramp(step))
            return jprune.straight_through(params, masks, decay=2e-4)

        params, _ = fit(
            dense.fn,
            adam(dense.steps),
            dense.params,
            dense.x,
            one_hot(dense.y),
            range(dense.steps, 2 * dense.steps),
            dense.seed,
            view,
        )
        return jprune.apply_masks(params, find(params, last))

    return run


def criterion_of(dense: Dense, active: bool) -> Any:
    """The size of a weight, or that times the norm of what it multiplies."""
    if not active:
        return jprune.criteria.magnitude()
    images = pixels(dense.x[:1024])
    stats = jprune.calibrate(dense.fn, dense.params, [(images,)])
    return jprune.criteria.activation(stats)


def repaired(dense: Dense, sparsity: float) -> Any:
    """Pruned at once, repaired, and then trained."""
    found = jprune.one_shot(
        dense.fn,
        dense.params,
        [(pixels(dense.x[:1024]),)],
        sparsity,
        allocation=erdos_renyi(),
    )
    return tuned(dense, found.params, jprune.keep_masks(found.masks))


def rigl(dense: Dense, sparsity: float) -> Any:
    """Never dense."""
    steps = 2 * dense.steps
    tx = jprune.rigl(
        adam(steps),
        sparsity,
        allocation=erdos_renyi(),
        every=100,
        stop=steps * 3 // 4,
    )
    return fit(
        dense.fn,
        tx,
        dense.fresh,
        dense.x,
        one_hot(dense.y),
        range(steps),
        dense.seed,
    )[0]


def soft(threshold: float) -> Recipe:
    """The proximal gradient of the l1 norm, then the smallest go."""

    def run(dense: Dense, sparsity: float) -> Any:
        half = dense.steps // 2
        fit_on = partial(fit, dense.fn, x=dense.x, targets=one_hot(dense.y))
        prox = jprune.project(
            jprune.projections.soft_threshold(threshold), where="kernel"
        )
        shrunk, _ = fit_on(
            tx=optax.chain(optax.adam(RATE / 2), prox),
            params=dense.params,
            steps=range(dense.steps, dense.steps + half),
            seed=dense.seed,
        )
        masks = jprune.find_masks(shrunk, sparsity, allocation=global_ranking())
        return fit_on(
            tx=optax.chain(adam(half), jprune.keep_masks(masks)),
            params=jprune.apply_masks(shrunk, masks),
            steps=range(dense.steps + half, 2 * dense.steps),
            seed=dense.seed,
        )[0]

    return run


RANKING, L2 = global_ranking(), global_ranking("l2")
RECIPES: dict[str, Recipe] = {
    "gradual, uniform": gradual(uniform()),
    "gradual, Erdos-Renyi": gradual(erdos_renyi()),
    "gradual, one ranking": gradual(RANKING),
    "gradual, one ranking (l2)": gradual(L2),
    "gradual, one ranking (lamp)": gradual(global_ranking("lamp")),
    "gradual, Erdos-Renyi, activation": gradual(erdos_renyi(), active=True),
    "gradual, one ranking (l2), activation": gradual(L2, active=True),
    "gradual, one ranking, activation": gradual(RANKING, active=True),
    "gradual, one ranking, activation, and the dense model's outputs": gradual(
        RANKING, active=True, taught=True
    ),
    "gradual, one ranking (l2), activation, and the dense model's outputs": (
        gradual(L2, active=True, taught=True)
    ),
    "straight-through, Erdos-Renyi": straight_through(by_size(True), False),
    "straight-through, Erdos-Renyi, activation": straight_through(
        by_size(True)
    ),
    "straight-through, Erdos-Renyi, no windows, activation": straight_through(
        by_size(False)
    ),
    "straight-through, one ranking, activation": straight_through(by_ranking),
    "straight-through, by hand, activation": straight_through(by_hand),
    "RigL, Erdos-Renyi": rigl,
    "repaired by ADMM, Erdos-Renyi": repaired,
    "soft thresholds": soft(2e-6),
}


def choose(network: Network, data: Data, args: argparse.Namespace) -> str:
    """The recipe with the smallest error on validation images."""
    x, y = np.asarray(data.x), np.asarray(data.y)
    rest, held = slice(None, -VALIDATION), slice(-VALIDATION, None)
    found: dict[str, list[float]] = {}
    names = args.recipes
    for seed in range(args.choosing):
        dense = train(network, x[rest], y[rest], seed)
        first = errors(dense.fn, dense.params, x[held], y[held])
        found.setdefault("dense", []).append(first.mean)
        for name in tqdm(names, f"choosing, seed {seed}", leave=False):
            longer = dense._replace(steps=args.longer * dense.steps)
            params = RECIPES[name](longer, network.judged)
            one = errors(dense.fn, params, x[held], y[held])
            found.setdefault(name, []).append(one.mean)
    print(f"\nerror on {VALIDATION:,} validation images, {network.judged:.0%}")
    for name, values in found.items():
        print(f"{name:70} {mean(values)}", flush=True)
    return min(names, key=lambda name: np.mean(found[name]))


def show(name: str, data: Data, args: argparse.Namespace) -> None:
    """Chooses a recipe and prints what it does on the test images."""
    network = NETWORKS[name]
    more = args.longer * network.epochs
    print(f"\n{name}, {network.epochs} epochs and {more} more")
    recipe = args.recipes[0]
    if len(args.recipes) > 1:
        recipe = choose(network, data, args)
    if not args.seeds:
        return
    x, y = np.asarray(data.x), np.asarray(data.y)
    x_test, y_test = np.asarray(data.x_test), np.asarray(data.y_test)
    cells: dict[Any, list[Errors]] = {}
    for seed in tqdm(range(args.seeds), name, leave=False):
        dense = train(network, x, y, seed + 100)
        judge = partial(errors, dense.fn, x=x_test, y=y_test)
        cells.setdefault(0.0, []).append(judge(params=dense.params))
        for sparsity in args.sparsities or network.sparsities:
            longer = dense._replace(steps=args.longer * dense.steps)
            params = RECIPES[recipe](longer, sparsity)
            kernels = [w for w in jax.tree.leaves(params) if w.ndim > 1]
            kept = sum(int(np.count_nonzero(w)) for w in kernels)
            assert kept <= (1 - sparsity) * sum(w.size for w in kernels) + 1
            cells.setdefault(sparsity, []).append(judge(params=params))
    print(f"\n{args.seeds} seeds on 10,000 test images: {recipe}")
    print(f"{'weights left':14}{'error':>14}{'worst':>16}{'noisy':>16}")
    for sparsity, found in cells.items():
        row = "".join(f"{mean(part):>16}" for part in zip(*found, strict=True))
        print(f"{1 - sparsity:>12.1%}{row}", flush=True)
    print("published:                         left %    dense    error")
    for source, left, before, after in network.published:
        print(f"{source:36}{left:>5} {before:>8} {after:>8}")


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--data", default=os.environ.get("MNIST"), help="mnist.npz")
    add("--networks", nargs="+", default=[*NETWORKS])
    add("--recipes", nargs="+", default=[*RECIPES])
    add(
        "--longer",
        type=int,
        default=1,
        help="a recipe's epochs, in the dense's",
    )
    add("--seeds", type=int, default=3, help="0: recipes are compared only")
    add("--sparsities", type=float, nargs="+", help="for the test images")
    add(
        "--choosing",
        type=int,
        default=1,
        help="seeds that recipes are tried on",
    )
    args = parser.parse_args(argv)
    begin, busy = time.perf_counter(), time.process_time()
    data = load(args.data)
    for name in args.networks:
        show(name, data, args)
    wall, cpu = time.perf_counter() - begin, time.process_time() - busy
    print(
        f"\n{wall:.0f} s ({cpu:.0f} s of processor time) on {os.cpu_count()} "
        f"cores, jax {jax.__version__}, {jax.devices()[0].platform}."
    )


if __name__ == "__main__":
    main()
