"""What training costs when units are removed on the way, compiling included.

    python examples/benchmarks/shrinking.py --data mnist.npz

An MLP 784-1024-1024-10 learns MNIST in 16 epochs of Adam: batches of 256, a
cosine from 1e-3. For each seed it is trained three times.

"dense" keeps all its units. "shrinking" prunes units in the first two epochs,
to 80 % of the multiply-adds by one cubic schedule, and is compacted after each
of these epochs. It goes on at the new width with its parameters, moments,
counts and pruner, in a program that is compiled anew. "from scratch" has that
last width from the first step. In each seed all three see the same batches.

Seconds are those of a whole training: first weights, tracing, compiling,
compacting and all steps. Reading the data and testing are left out, and nothing
that was compiled before is kept. CPU seconds, of all cores together, say more
on a machine that others use too. Numbers are means and standard errors over the
seeds; differences and ratios are taken within a seed. Last, the trained
networks are called in turn with 1, 32 and 256 images.

`--data` is the file that Keras calls mnist.npz, with the arrays `x_train`
[60000, 28, 28] of uint8, `y_train`, `x_test` and `y_test`. Without it, and
without an environment variable MNIST that names it, scikit-learn downloads
`mnist_784` from OpenML.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from served import SERVED, faster, total_bytes
from tqdm import tqdm

import jprune
from jprune.models import MLP

EVERY = 20  # steps between two choices of units
ALLOCATIONS = {
    "uniform": jprune.allocations.uniform(),
    "global_ranking": jprune.allocations.global_ranking(),
    "global_ranking_l2": jprune.allocations.global_ranking("l2"),
}


class Data(NamedTuple):
    """Pixels from 0 to 255 in rows of 784, and digits."""

    x: jax.Array
    y: jax.Array
    x_test: jax.Array
    y_test: jax.Array


def load(path: str | None) -> Data:
    """MNIST from a file, or from OpenML."""
    if path:
        with np.load(path) as file:
            names = ("x_train", "y_train", "x_test", "y_test")
            x, y, x_test, y_test = (file[name] for name in names)
    else:
        from sklearn.datasets import fetch_openml

        x, y = fetch_openml(
            "mnist_784", version=1, as_frame=False, return_X_y=True
        )
        (x, x_test), (y, y_test) = (np.split(a, [60000]) for a in (x, y))
    images = (a.reshape(len(a), -1).astype(np.uint8) for a in (x, x_test))
    digits = (a.astype(np.int32) for a in (y, y_test))
    (x, x_test), (y, y_test) = (
        map(jnp.asarray, images),
        map(jnp.asarray, digits),
    )
    return Data(x, y, x_test, y_test)


class Plan(NamedTuple):
    """How all models are trained."""

    batch: int
    epochs: int
    rate: float
    sparsity: float
    stages: int  # epochs in which units go
    floor: float
    allocation: str

    def steps(self, data: Data) -> int:
        """Those of an epoch."""
        return len(data.y) // self.batch

    def optimizer(self, data: Data) -> Any:
        steps = self.epochs * self.steps(data)
        return optax.adam(optax.cosine_decay_schedule(self.rate, steps))


def fit(
    fn: Any,
    tx: Any,
    carry: tuple[Any, Any],
    data: Data,
    epochs: range,
    seed: int,
    plan: Plan,
) -> tuple[Any, Any]:
    """Parameters and state after some epochs, which are one program."""

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        logits = fn(params, x / np.float32(255))
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @jax.jit
    def epoch(carry: Any, order: Any, x: jax.Array, y: jax.Array) -> Any:
        def step(carry: Any, rows: jax.Array) -> tuple[Any, None]:
            params, state = carry
            grads = jax.grad(loss)(params, x[rows], y[rows])
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, carry, order)[0]

    for number in tqdm(epochs, leave=False):
        order = np.random.default_rng((seed, number)).permutation(len(data.y))
        order = order[: plan.steps(data) * plan.batch].reshape(-1, plan.batch)
        carry = epoch(carry, order, data.x, data.y)
        jax.block_until_ready(carry)
    return carry


def whole(
    model: MLP, params: Any, data: Data, seed: int, plan: Plan
) -> tuple[MLP, Any]:
    """A model that stays as large as it is."""
    tx = plan.optimizer(data)
    carry = params, tx.init(params)
    epochs = range(plan.epochs)
    return model, fit(model.apply, tx, carry, data, epochs, seed, plan)[0]


def shrinking(
    model: MLP, params: Any, data: Data, seed: int, plan: Plan
) -> tuple[MLP, Any]:
    """A model that loses units, and is compacted after each epoch of that."""
    image = jnp.zeros((1, data.x.shape[1]))
    end = plan.stages * plan.steps(data)
    ramp = optax.polynomial_schedule(0.0, plan.sparsity, 3, end - EVERY)
    first = jprune.trace_units(model.apply, params, image)
    state = None
    stages = [range(i, i + 1) for i in range(plan.stages)]
    for epochs in [*stages, range(plan.stages, plan.epochs)]:
        if state is not None:
            masks = jprune.get_masks(state)
            small = jprune.compact(model.apply, params, image, masks=masks)
            params, state = small.params, small.take(state)
            model = MLP.from_params(params)
        graph = jprune.trace_units(model.apply, params, image)
        units = jprune.units(
            graph, by="multiply_adds", floor=plan.floor, of=first
        )
        pruner = jprune.prune(
            ramp,
            structure=units,
            allocation=ALLOCATIONS[plan.allocation],
            every=EVERY,
        )
        tx = optax.chain(plan.optimizer(data), pruner)
        state = tx.init(params) if state is None else state
        carry = params, state
        params, state = fit(model.apply, tx, carry, data, epochs, seed, plan)
    return model, params


class Run(NamedTuple):
    """What came out of one training."""

    model: MLP
    params: Any
    accuracy: float  # percent
    wall: float  # seconds
    cpu: float

    @property
    def served(self) -> tuple[Any, Any]:
        """As ``(fn, params)``."""
        return self.model.apply, self.params


def timed(
    train: Callable[..., tuple[MLP, Any]],
    features: tuple[int, ...],
    data: Data,
    seed: int,
    plan: Plan,
) -> Run:
    """One training from the first weights on, and how well it did."""
    jax.clear_caches()
    wall, cpu = time.perf_counter(), time.process_time()
    model = MLP(features)
    start = jax.jit(model.init)(
        jax.random.key(seed), jnp.zeros((1, data.x.shape[1]))
    )
    model, params = train(model, start, data, seed, plan)
    jax.block_until_ready(params)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    found = jax.jit(model.apply)(params, data.x_test / np.float32(255))
    right = 100 * np.mean(np.argmax(found, -1) == data.y_test)
    run = Run(model, params, float(right), wall, cpu)
    tqdm.write(
        f"seed {seed}, {train.__name__}: {model.features}, {right:.2f} %, "
        f"{wall:.1f} s, {cpu:.1f} s of processors",
        sys.stderr,
    )
    return run


def show(values: Sequence[float], digits: int) -> str:
    """Mean and standard error."""
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{np.mean(values):.{digits}f} ± {error:.{digits}f}"


def report(runs: dict[str, list[Run]], x: jax.Array) -> None:
    """The tables, the second of calls with some of the images ``x``."""
    print(
        "| training | units | multiply-adds | accuracy, % | against dense "
        "| seconds | times faster | CPU seconds | times faster |\n"
        "|---|---|---|---|---|---|---|---|---|"
    )
    dense = runs["dense"]
    for name, several in runs.items():
        pairs = list(zip(dense, several, strict=True))
        widths = np.array([run.model.features for run in several])
        sizes = np.pad(widths, ((0, 0), (1, 0)), constant_values=784)
        products = (sizes[:, 1:] * sizes[:, :-1]).sum(1)
        cells = [
            name,
            ", ".join(f"{n:.0f}" for n in widths.mean(0)[:-1]),
            f"{products.mean():,.0f}",
            show([run.accuracy for run in several], 2),
            show([b.accuracy - a.accuracy for a, b in pairs], 2),
            show([run.wall for run in several], 1),
            show([a.wall / b.wall for a, b in pairs], 2),
            show([run.cpu for run in several], 1),
            show([a.cpu / b.cpu for a, b in pairs], 2),
        ]
        print(f"| {' | '.join(cells)} |")
    heads = ("bytes", *(f"faster at {n}" for n in SERVED))
    print(f"\n| training | {' | '.join(heads)} |\n|---|---|---|---|---|")
    for name, several in runs.items():
        ratios = [
            faster(a.served, b.served, x)
            for a, b in zip(dense, several, strict=True)
        ]
        cells = [
            name,
            f"{np.mean([total_bytes(run.params) for run in several]):,.0f}",
            *(show(column, 2) for column in zip(*ratios, strict=True)),
        ]
        print(f"| {' | '.join(cells)} |")


def main() -> None:
    """Trains and prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add(
        "--data",
        metavar="FILE",
        default=os.environ.get("MNIST"),
        help="mnist.npz (default: from OpenML)",
    )
    add("--widths", type=int, nargs="+", default=[1024, 1024])
    add("--epochs", type=int, default=16, help="more than --stages (16)")
    add("--batch", type=int, default=256, help="images in a step (256)")
    add("--rate", type=float, default=1e-3, help="of Adam, at first (1e-3)")
    add("--sparsity", type=float, default=0.8, help="of multiply-adds (.8)")
    add("--stages", type=int, default=2, help="epochs in which units go (2)")
    add("--allocation", choices=ALLOCATIONS, default="uniform")
    add("--floor", type=float, default=0.05, help="in one ranking (.05)")
    add("--seeds", type=int, default=3, help="at least 2 (3)")
    add("--rows", type=int, help="of the training data (all)")
    args = parser.parse_args()
    if args.seeds < 2 or not 0 < args.stages < args.epochs:
        parser.error("needs 2 seeds, a stage, and more epochs than stages")
    plan = Plan(**{name: getattr(args, name) for name in Plan._fields})
    data = load(args.data)
    data = data._replace(x=data.x[: args.rows], y=data.y[: args.rows])
    features = (*args.widths, 10)
    runs: dict[str, list[Run]] = {
        "dense": [],
        "shrinking": [],
        "from scratch": [],
    }
    for seed in range(args.seeds):
        last = timed(shrinking, features, data, seed, plan)
        runs["shrinking"].append(last)
        runs["dense"].append(timed(whole, features, data, seed, plan))
        again = timed(whole, tuple(last.model.features), data, seed, plan)
        runs["from scratch"].append(again)
    device = jax.devices()[0]
    print(
        f"{os.cpu_count()} cores, jax {jax.__version__}, {device}; "
        f"{len(data.y):,} images, {args.seeds} seeds, {plan}\n"
    )
    report(runs, data.x_test[: max(SERVED)] / np.float32(255))


if __name__ == "__main__":
    main()
