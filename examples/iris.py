"""A network of Iris flowers, pruned in every way that the core offers.

Trains a 4-10-10-3 network on Fisher's flowers, prunes it in many ways, lets
`compress` find out how much can be removed, and prints what each network keeps,
costs and scores:

    python examples/iris.py --plot iris.png
"""

import argparse
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_iris
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import jprune
from jprune.models import MLP

MODEL = MLP((10, 10, 3))
BATCH = 32
Params = Any  # a pytree; here a leading axis runs over the seeds


# The data and the losses -----------------------------------------------------


class Data(NamedTuple):
    """120 flowers to train on and 30 to test with."""

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def load_data() -> Data:
    """The split is the same for every seed; inputs are standardised."""
    x, y = load_iris(return_X_y=True)
    x, x_test, y, y_test = train_test_split(
        x, y, test_size=0.2, random_state=42
    )
    mean, std = x.mean(0), x.std(0)
    return Data((x - mean) / std, y, (x_test - mean) / std, y_test)


def cross_entropy(params: Params, x: jax.Array, y: jax.Array) -> jax.Array:
    logits = MODEL.apply(params, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def squared_error(params: Params, x: jax.Array, y: jax.Array) -> jax.Array:
    """1/2 sum |y - f(x)|^2 over the 120 flowers, estimated from a batch."""
    errors = jax.nn.one_hot(y, 3) - MODEL.apply(params, x)
    return 120 / len(x) * jnp.sum(errors**2) / 2


def compression(params: Params, x: jax.Array, y: jax.Array) -> jax.Array:
    """1/2 |W|_F^2 + 1/2 sum |y - f(x)|^2, biases included in W."""
    norm = optax.tree.norm(params, squared=True)
    return norm / 2 + squared_error(params, x, y)


def accuracy(params: Params, data: Data) -> jax.Array:
    return jnp.mean(MODEL.apply(params, data.x_test).argmax(-1) == data.y_test)


# One training function for every row, mapped over the seeds ------------------


class Run(NamedTuple):
    """The end of a training, and the test accuracy after each epoch."""

    params: Params
    state: optax.OptState
    curve: jax.Array


@partial(jax.jit, static_argnames=("tx", "loss"))
@partial(jax.vmap, in_axes=(0, 0, 0, None, None, None))
def train(
    params: Params,
    masks: Any,
    batches: jax.Array,
    data: Data,
    tx: optax.GradientTransformation,
    loss: Callable[..., jax.Array],
) -> Run:
    """Minimises ``loss`` with ``tx``; what ``masks`` prune stays zero."""
    if masks is not None:
        tx = optax.chain(tx, jprune.keep_masks(masks))

    def step(carry: Any, batch: jax.Array) -> tuple[Any, None]:
        params, state = carry
        grads = jax.grad(loss)(params, data.x[batch], data.y[batch])
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    def epoch(carry: Any, batches: jax.Array) -> tuple[Any, jax.Array]:
        carry, _ = jax.lax.scan(step, carry, batches)
        return carry, accuracy(carry[0], data)

    carry = params, tx.init(params)
    (params, state), curve = jax.lax.scan(epoch, carry, batches)
    return Run(params, state, curve)


def shuffle(seed: int, epochs: int) -> np.ndarray:
    """Flowers by epoch and batch; the 24 left of a shuffled epoch rest."""
    order = np.tile(np.arange(120), (epochs, 1))
    order = np.random.default_rng(seed).permuted(order, axis=1)
    return order[:, : 3 * BATCH].reshape(epochs, 3, BATCH)


class Row(NamedTuple):
    """A line of the table: parameters of all seeds, and how they came about."""

    name: str
    params: Params
    runs: Sequence[Run] = ()
    words: str = ""  # what a row says of itself


def automatic(params: Params, data: Data, args: argparse.Namespace) -> Any:
    """The smallest network that keeps a promise, from one call.

    Units go, what stays learns from the dense network, and the 30 test flowers
    judge: of so few no promise below 8.3 points can come.
    """
    tuned = jprune.distill(
        MODEL.apply, params, [data.x], optax.adam(0.01), 3 * args.epochs
    )
    return jprune.compress(
        MODEL.apply,
        params,
        [data.x],
        holdout=[(data.x_test, data.y_test)],
        inputs=1,
        score=lambda logits, x, y: logits.argmax(-1) == y,
        tolerance=args.tolerance,
        budgets=(0.5, 0.25, 0.12, 0.06),
        finetune=tuned,
    )


def run_all(args: argparse.Namespace, data: Data, bar: tqdm) -> list[Row]:
    """Trains and prunes; in a seed, all rows see the same batches."""
    seeds = range(args.seed, args.seed + args.seeds)
    batches = np.stack([shuffle(seed, args.epochs) for seed in seeds])
    keys = jax.vmap(jax.random.key)(np.array(seeds))
    fresh = jax.lax.map(lambda key: MODEL.init(key, data.x), keys)
    adam, sgd = optax.adam(0.01), optax.sgd(0.01)

    def fit(
        params: Params, tx: Any, loss: Any = cross_entropy, masks: Any = None
    ) -> Run:
        run = train(params, masks, batches, data, tx, loss)
        jax.block_until_ready(run)
        bar.update(args.epochs)
        return run

    def find(params: Params, sparsity: float, **options: Any) -> Any:
        return jax.lax.map(
            lambda p: jprune.find_masks(p, sparsity, **options), params
        )

    dense = fit(fresh, adam)

    # What the article calls pruning: all weights shrink, and all stay.
    scaled = jax.tree.map(lambda w: (1 - args.rate) * w, dense.params)

    # One shot: the smallest weights of each layer go, the others adapt.
    masks = find(dense.params, args.rate)
    cut = jprune.apply_masks(dense.params, masks)
    tuned = fit(cut, sgd, masks=masks)

    # Gradual: the optimizer prunes while it learns, fast and then slowly, and
    # SGD goes on with the masks that it found.
    steps = 3 * args.epochs
    ramp = optax.polynomial_schedule(
        0.0, args.sparsity, 3, max(steps // 2, 1), steps // 4
    )
    gradual = fit(fresh, optax.chain(adam, jprune.prune(ramp)))
    held = fit(gradual.params, sgd, masks=jprune.get_masks(gradual.state))

    # Global: one ranking of all weights, so that layers lose what they can.
    ranking = jprune.allocations.global_ranking()
    masks = find(dense.params, args.sparsity, allocation=ranking)
    ranked = fit(jprune.apply_masks(dense.params, masks), sgd, masks=masks)

    # The three problems: a small norm instead of few weights.
    ball = optax.chain(adam, jprune.project_frobenius_ball(args.radius))
    first = fit(fresh, adam, compression)
    second = fit(fresh, ball, compression)
    third = fit(fresh, ball, squared_error)

    # Automatic: the first seed's network, as small as the flowers allow.
    found = automatic(at_first(dense.params), data, args)
    smallest = jax.tree.map(lambda w: w[None], found.params)

    rate, sparsity = f"{100 * args.rate:g}%", f"{100 * args.sparsity:g}%"
    return [
        Row("dense", dense.params, [dense]),
        Row(f"scaled by 1 - {args.rate:g}", scaled),
        Row(f"one-shot {rate}", cut),
        Row(f"one-shot {rate}, fine-tuned", tuned.params, [dense, tuned]),
        Row(f"gradual to {sparsity}", held.params, [gradual, held]),
        Row(f"global {sparsity}, fine-tuned", ranked.params, [dense, ranked]),
        Row("problem 1, compression", first.params, [first]),
        Row("problem 2, ... in the ball", second.params, [second]),
        Row("problem 3, fit in the ball", third.params, [third]),
        Row(
            f"automatic, {100 * args.tolerance:g} points",
            smallest,
            words=str(found.promise),
        ),
    ]


# What came out ---------------------------------------------------------------


class Measured(NamedTuple):
    """The numbers of a row; but for the mean, those of the first seed."""

    accuracy: float
    mean_accuracy: float
    kept: int  # kernel entries that are not 0: what a sparse pass multiplies
    weights: int  # kernel entries; biases are never pruned
    norm: float  # |W|_F, biases included
    stored: int  # bytes in a sparse file, behind its header


def at_first(params: Params) -> Params:
    """The first seed's network."""
    return jax.tree.map(lambda p: p[0], params)


def kernels(params: Params) -> list[np.ndarray]:
    """The kernels of the first seed's network."""
    layers = params["params"].values()
    return [np.asarray(layer["kernel"][0]) for layer in layers]


def measure(params: Params, data: Data) -> Measured:
    """Counts zeros in the weights themselves, not in any mask."""
    scores = jax.vmap(accuracy, (0, None))(params, data)
    first = at_first(params)
    weights = sum(w.size for w in kernels(params))
    kept = sum(int(np.count_nonzero(w)) for w in kernels(params))
    return Measured(
        accuracy=float(scores[0]),
        mean_accuracy=float(scores.mean()),
        kept=kept,
        weights=weights,
        norm=float(optax.tree.norm(first)),
        stored=bytes_in_file(first),
    )


def bytes_in_file(params: Params) -> int:
    """Writes a sparse file: values that are not 0, and one bit per weight."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "iris.safetensors"
        jprune.export.save_sparse(file, params)
        data = file.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")  # it names the arrays
    return len(data) - header


def table(rows: Sequence[Row], results: Sequence[Measured], args: Any) -> str:
    seed, mean = f" seed {args.seed}", f"mean of {args.seeds}"
    lines = [
        "A 4-10-10-3 network on Iris; test accuracy on 30 flowers.\n",
        f"{'':26} {seed} {mean:>12} {'kept':>8} {'sparsity':>9}"
        f" {'|W|_F':>6} {'mul-adds':>9} {'bytes':>6}",
    ]
    for row, m in zip(rows, results, strict=True):
        average = f"{m.mean_accuracy:.1%}" if not row.words else "-"
        lines.append(
            f"{row.name:26} {m.accuracy:{len(seed)}.1%} {average:>12}"
            f" {f'{m.kept}/{m.weights}':>8} {1 - m.kept / m.weights:9.1%}"
            f" {m.norm:6.2f} {m.kept:9} {m.stored:6}"
        )
    return "\n".join(lines)


def conclude(rows: Sequence[Row], results: Sequence[Measured]) -> str:
    """Two sentences, made of the numbers, so that they hold for any."""
    dense, scaled, _, *pruned = results[:6]
    shrunk = [scaled, *results[6:9]]
    norms = "{:.2f}, {:.2f}, {:.2f} and {:.2f}".format(
        *(m.norm for m in shrunk)
    )
    lost = [m.weights - m.kept for m in shrunk]
    removed = "{}, {}, {} and {}".format(*lost) if any(lost) else "none"
    name, best = min(
        zip([row.name for row in rows[3:6]], pruned, strict=True),
        key=lambda pair: (pair[1].stored, -pair[1].mean_accuracy),
    )
    return (
        f"Scaling and problems 1 to 3 bring |W|_F from {dense.norm:.2f} to "
        f"{norms}, and remove {removed} of the {dense.weights} weights.\n"
        f'The smallest pruned network, "{name}", keeps {best.kept} of them in '
        f"{best.stored} bytes (dense: {dense.stored}), at a mean accuracy of "
        f"{best.mean_accuracy:.1%} (dense: {dense.mean_accuracy:.1%})."
    )


def plot(path: Path, rows: Sequence[Row]) -> None:
    """Kernels of the first seed, pruned weights grey; and learning curves."""
    from matplotlib.figure import Figure

    figure = Figure((11, 7), layout="constrained")
    above, below = figure.subfigures(2, 1)
    shown = [rows[i] for i in (0, 1, 3, 4, 5, 8)]
    axes = above.subplots(3, len(shown), height_ratios=(4, 10, 3))
    for column, row in zip(axes.T, shown, strict=True):
        column[0].set_title(row.name, fontsize=9)
        first, second, last = kernels(row.params)
        for axis, w in zip(column, (first, second, last.T), strict=True):
            w = np.ma.masked_equal(w, 0)
            image = axis.imshow(w, cmap="RdBu", vmin=-2, vmax=2)
            axis.set(facecolor="0.75", xticks=[], yticks=[])
    for layer, axis in enumerate(axes[:, 0]):
        axis.set_ylabel(f"layer {layer + 1}")
    above.colorbar(image, ax=axes, label="weight; grey: pruned, exactly 0")

    axis = below.subplots()
    for row in reversed([row for row in rows if row.runs]):
        curve = np.concatenate([run.curve for run in row.runs], axis=1)
        epochs = np.arange(1, curve.shape[1] + 1)
        axis.plot(epochs, 100 * curve.mean(0), label=row.name, lw=1)
    axis.set(xlabel="epoch", ylabel="test accuracy, %, mean of the seeds")
    axis.legend(fontsize=8)
    figure.savefig(path, dpi=100)


# The command line ------------------------------------------------------------


def number(kind: type, low: float, high: float) -> Callable[[str], Any]:
    """A type for argparse whose error says what it wanted."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            name = "whole number" if kind is int else "number"
            raise argparse.ArgumentTypeError(
                f"must be a {name} in [{low:,}, {high:,}], got {text!r}"
            )
        return value

    return parse


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description="Prune a small network on Iris in many ways."
    )

    def add(flag: str, kind: Any, default: Any, text: str) -> None:
        parser.add_argument(
            flag, type=kind, default=default, help=f"{text} (%(default)s)"
        )

    add("--sparsity", number(float, 0, 1), 0.8, "gradual and global pruning")
    add("--rate", number(float, 0, 1), 0.5, "scaling and one-shot pruning")
    add("--radius", number(float, 1e-6, 1e6), 2.5, "|W|_F in the ball")
    add("--tolerance", number(float, 0.09, 0.9), 0.1, "of the automatic row")
    add("--epochs", number(int, 1, 10_000), 100, "of every training")
    add("--seed", number(int, 0, 10**9), 42, "the first seed")
    add("--seeds", number(int, 1, 1000), 20, "how many seeds are averaged")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw weights and curves"
    )
    args = parser.parse_args(argv)
    if args.plot and not (
        args.plot.suffix in (".png", ".pdf", ".svg")
        and args.plot.parent.is_dir()
    ):
        parser.error(
            "argument --plot: must be a .png, .pdf or .svg in a folder that "
            f"exists, got '{args.plot}'"
        )

    data = load_data()
    with tqdm(total=8 * args.epochs, unit="epoch", desc="training") as bar:
        rows = run_all(args, data, bar)
    results = [measure(row.params, data) for row in rows]
    print(table(rows, results, args), conclude(rows, results), sep="\n\n")
    print(f"\nWhat `compress` says of the last row:\n{rows[-1].words}")
    if args.plot:
        plot(args.plot, rows)


if __name__ == "__main__":
    main()
