"""What each criterion, allocation and structure costs in accuracy.

    python examples/benchmarks/accuracy.py --plot accuracy.png

Two data sets of scikit-learn: digits (an MLP of 64-300-100-10 units) and breast
cancer (30-300-100-2). Ten seeds, each with its own division (a quarter of the
rows is for testing, stratified), initial weights and batches; all rows of the
table see the same ones. A dense network is trained for 200 steps of Adam (rate
3e-3, batches of 64: 10 epochs of the digits, 30 of the others). From there each
row trains 200 more steps with the same settings and fresh moments: the sparsity
rises by a cubic schedule from step 20 to step 120, masks are chosen every 10
steps, and the other steps recover. `snip` prunes fresh weights at once and
trains them for all 400 steps.

In the first part of the table single weights of all three kernels are pruned.
In the second part ("hidden") only the first two are: so no output is lost, the
last layer need not have as many outputs as a group, and all rows are alike, for
their row of single weights keeps the last kernel dense too. Biases are never
pruned. Cells are test accuracies in percent, means and standard errors over the
seeds. The trainings of a row, all seeds and sparsities, are one program.

Networks of other kinds learn the digits in the same way: a CNN with BatchNorm,
and a transformer of two blocks. The weights of the blocks are leaves of their
own or, from the same first weights, stacks that a scan goes through; these
kernels are pruned, and a table has their sparsities layer by layer.

    python examples/benchmarks/accuracy.py --only networks --seeds 3
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import jprune
from jprune.allocations import erdos_renyi, global_ranking, uniform
from jprune.criteria import (
    fisher,
    gradient,
    magnitude,
    movement,
    random,
    snip,
    taylor,
)
from jprune.models import MLP
from jprune.structures import (
    block,
    channel,
    fan_in,
    group,
    n_m,
    unstructured,
)

SPARSITIES = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
BATCH = 64
RATE = 3e-3
HIDDEN = "Dense_[01]/kernel"  # all but the last
BLOCKS = "blocks.*kernel"  # in stacks, scales of norms have two axes as well
PARTS = {HIDDEN: "hidden", BLOCKS: "blocks"}
LAYERS = 2
MLPS = ("digits", "breast cancer")
SNIP = "snip(loss, params, batch)"
CRITERIA = {
    "magnitude()": magnitude(),
    "random()": random(),
    "gradient()": gradient(),
    "taylor()": taylor(),
    'taylor("squared")': taylor("squared"),
    "movement()": movement(),
    "fisher()": fisher(),
    SNIP: None,  # made of the weights that it prunes
}
STRUCTURES = {
    "unstructured()": unstructured(),
    "unstructured(batch_axis=0)": unstructured(batch_axis=0),
    "fan_in()": fan_in(),
    "n_m(2, 4)": n_m(2, 4),
    "n_m(1, 10)": n_m(1, 10),
    "group(8)": group(8),
    "group(32)": group(32),
    "block((4, 4))": block((4, 4)),
    "block((16, 16))": block((16, 16)),
    "channel(-1)": channel(-1),
    "channel(-2)": channel(-2),
    'channel(-2, pooling="mean")': channel(-2, pooling="mean"),
}
ALLOCATIONS = {
    "uniform()": uniform(),
    "erdos_renyi()": erdos_renyi(),
    "global_ranking()": global_ranking(),
    'global_ranking("l2")': global_ranking("l2"),
    'global_ranking("lamp")': global_ranking("lamp"),
}


class Method(NamedTuple):
    """A row of the table: what is called."""

    structure: str = "unstructured()"
    criterion: str = "magnitude()"
    allocation: str = "uniform()"
    where: str | None = None
    levels: tuple[float, ...] = SPARSITIES  # those that the structure can reach
    tasks: tuple[str, ...] = MLPS  # those with layers of fitting sizes


def methods() -> Iterator[Method]:
    """All that make sense for the MLPs."""
    for criterion in CRITERIA:
        if criterion == 'taylor("squared")':
            continue  # of single weights it is taylor()
        for allocation in ALLOCATIONS:
            ranks = allocation.startswith("global")
            if criterion == "random()" and ranks:
                continue  # the same scores everywhere: uniform, by chance
            if criterion != "magnitude()" and "lamp" in allocation:
                continue  # it is derived for magnitudes
            yield Method("unstructured()", criterion, allocation)
    hidden = partial(Method, where=HIDDEN)
    for structure in STRUCTURES:
        if structure.startswith(("n_m", "channel(-2, ", "unstructured(b")):
            continue
        yield hidden(structure)
        if structure in ("unstructured()", "fan_in()"):
            yield hidden(structure, allocation="erdos_renyi()")
        if structure != "fan_in()":  # its numbers are equal: no ranking
            yield hidden(structure, allocation="global_ranking()")
    # Every m must divide the inputs of each layer: 64 and 300, or 30 and 300.
    yield hidden("n_m(2, 4)", levels=(0.5,), tasks=("digits",))
    yield hidden("n_m(1, 10)", levels=(0.5, 0.8, 0.9), tasks=MLPS[1:])
    for criterion in ("random()", "taylor()", "fisher()"):
        yield hidden("channel(-2)", criterion)
    # Signs must not be lost in a norm.
    for criterion in ('taylor("squared")', "movement()"):
        yield hidden('channel(-2, pooling="mean")', criterion)


def network_methods() -> Iterator[Method]:
    """How much where, in networks of other kinds."""
    for allocation in ALLOCATIONS:
        yield Method(allocation=allocation, tasks=("digits, CNN",))
        blocks = partial(Method, allocation=allocation, where=BLOCKS)
        yield blocks(tasks=("digits, transformer",))
        yield blocks("unstructured(batch_axis=0)", tasks=("digits, scan",))


def convolution(x: jax.Array, kernel: jax.Array, *_: Any, **__: Any) -> Any:
    """Of 3 x 3 pixels, as a product.

    Under ``vmap`` networks have kernels of their own: XLA makes that a grouped
    convolution, which is slow on a CPU.
    """
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifts = [x[:, i : i + 8, j : j + 8] for i in range(3) for j in range(3)]
    return jnp.concatenate(shifts, -1) @ kernel.reshape(-1, kernel.shape[-1])


class CNN(nn.Module):
    """Two convolutions and two dense layers, three of them with BatchNorm."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        # Where statistics may change, it is training.
        known = not self.is_mutable_collection("batch_stats")
        x = x.reshape(len(x), 8, 8, 1)
        for channels in (16, 32):
            x = nn.Conv(
                channels,
                (3, 3),
                use_bias=False,
                conv_general_dilated=convolution,
            )(x)
            x = nn.relu(nn.BatchNorm(known, momentum=0.9)(x))
        x = x.reshape(len(x), 4, 2, 4, 2, 32).max((2, 4))
        x = nn.Dense(64, use_bias=False)(x.reshape(len(x), -1))
        x = nn.relu(nn.BatchNorm(known, momentum=0.9)(x))
        return nn.Dense(10)(x)


class Block(nn.Module):
    """Attention and a layer of hidden units, each behind a norm."""

    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        width = x.shape[-1]
        attention = nn.MultiHeadDotProductAttention(4, name="attention")
        x += attention(nn.LayerNorm()(x))
        h = nn.gelu(nn.Dense(2 * width)(nn.LayerNorm()(x)))
        return x + nn.Dense(width)(h), None


class Transformer(nn.Module):
    """Blocks over the rows of an image."""

    stacked: bool  # whether a scan goes through stacks of weights

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Dense(32, name="embed")(x.reshape(*x.shape[:-1], 8, 8))
        x += self.param("position", nn.initializers.normal(0.1), (8, 32))
        if self.stacked:
            axes, keys = {"params": 0}, {"params": True}
            scan = nn.scan(Block, axes, split_rngs=keys, length=LAYERS)
            x, _ = scan(name="blocks")(x, None)
        else:
            for i in range(LAYERS):
                x, _ = Block(name=f"blocks_{i}")(x, None)
        return nn.Dense(10)(nn.LayerNorm()(x).mean(-2))


def first_weights(model: nn.Module, key: jax.Array, x: jax.Array) -> Any:
    """Variables; stacked blocks begin like the others."""
    if not getattr(model, "stacked", False):
        return model.init(key, x)
    params = Transformer(stacked=False).init(key, x)["params"]
    blocks = [params.pop(f"blocks_{i}") for i in range(LAYERS)]
    stack = jax.tree.map(lambda *layers: jnp.stack(layers), *blocks)
    return {"params": params | {"blocks": stack}}


def kernels(variables: Any) -> dict[str, jax.Array]:
    """By name; of stacked blocks one for each layer."""
    found = {}
    for path, x in jax.tree_util.tree_leaves_with_path(variables["params"]):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        layer, _, last = name.rpartition("/")
        if last != "kernel":
            continue
        if layer.startswith("blocks/"):
            rest = layer.removeprefix("blocks")
            found |= {f"blocks_{i}{rest}": x[i] for i in range(LAYERS)}
        else:
            found[layer] = x
    return found


class Data(NamedTuple):
    """Rows to train on and to test with; a leading axis runs over the seeds."""

    x: jax.Array
    y: jax.Array
    x_test: jax.Array
    y_test: jax.Array


class Task(NamedTuple):
    """What the methods share; leading axes run over the seeds."""

    model: nn.Module
    data: Data
    keys: jax.Array
    batches: jax.Array  # [seeds, steps, rows], of both halves of the training
    fresh: Any  # variables before the training
    dense: Any  # and after its first half


def make_task(name: str, seeds: int, steps: int) -> Task:
    """Loads the data and trains the dense networks."""
    load = load_breast_cancer if name == "breast cancer" else load_digits
    x, y = load(return_X_y=True)
    parts = []
    for seed in range(seeds):
        x_train, x_test, y_train, y_test = train_test_split(
            x, y, test_size=0.25, stratify=y, random_state=seed
        )
        # Pixels share a scale; the measurements of cells have one each.
        axis = 0 if name == "breast cancer" else None
        mean, std = x_train.mean(axis), x_train.std(axis)
        scaled = ((part - mean) / std for part in (x_train, x_test))
        x_train, x_test = (part.astype(np.float32) for part in scaled)
        parts.append(Data(x_train, y_train, x_test, y_test))
    data = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parts)
    model = {
        "digits, CNN": CNN(),
        "digits, transformer": Transformer(stacked=False),
        "digits, scan": Transformer(stacked=True),
    }.get(name, MLP((300, 100, int(y.max()) + 1)))
    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    fresh = jax.vmap(partial(first_weights, model))(keys, data.x)
    draw = partial(jax.random.randint, shape=(2 * steps, BATCH), minval=0)
    batches = jax.vmap(partial(draw, maxval=data.x.shape[1]))(keys)
    train = jax.jit(jax.vmap(partial(fit, model, optax.adam(RATE))))
    dense = train(fresh, data, batches[:, :steps])
    return Task(model, data, keys, batches, fresh, dense)


def cross_entropy(
    model: nn.Module, variables: Any, batch: Any
) -> tuple[jax.Array, Any]:
    """The loss, and the statistics of norms as they are after the batch."""
    x, y = batch
    logits, stats = model.apply(variables, x, mutable=["batch_stats"])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
    return losses.mean(), stats


def fit(
    model: nn.Module, tx: Any, variables: Any, data: Data, batches: Any
) -> Any:
    """Trains for as many steps as there are batches."""
    slope = jax.grad(partial(cross_entropy, model), has_aux=True)

    def step(carry: Any, rows: jax.Array) -> tuple[Any, None]:
        variables, state = carry
        grads, stats = slope(variables, (data.x[rows], data.y[rows]))
        updates, state = tx.update(grads, state, variables)
        return (optax.apply_updates(variables, updates) | stats, state), None

    carry = variables, tx.init(variables)
    return jax.lax.scan(step, carry, batches)[0][0]


def accuracy(model: nn.Module, variables: Any, data: Data) -> jax.Array:
    found = model.apply(variables, data.x_test).argmax(-1)
    return 100 * jnp.mean(found == data.y_test)


class Cells(NamedTuple):
    """What came out, for each seed and sparsity."""

    accuracy: np.ndarray  # percent, [seeds, levels]
    zeros: dict[str, np.ndarray]  # in each kernel
    sizes: dict[str, int]  # of the kernels


def run(method: Method, task: Task) -> Cells:
    """Prunes and trains in all seeds and to all sparsities at once."""
    steps = task.batches.shape[1] // 2
    ramp = optax.polynomial_schedule(0.0, 1.0, 3, steps // 2, steps // 10)

    def prune(
        sparsity: Any,
        fresh: Any,
        dense: Any,
        data: Data,
        batches: Any,
        key: Any,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        criterion = CRITERIA[method.criterion]
        start, target = dense, lambda count: sparsity * ramp(count)
        if criterion is None:

            def loss(*args: Any) -> jax.Array:
                return cross_entropy(task.model, *args)[0]

            criterion = snip(loss, fresh, (data.x, data.y))
            start, target = fresh, sparsity
        else:
            batches = batches[steps:]
        pruner = jprune.prune(
            target,
            criterion=criterion,
            structure=STRUCTURES[method.structure],
            allocation=ALLOCATIONS[method.allocation],
            where=method.where,
            every=max(steps // 20, 1),
            key=key,
        )
        tx = jprune.with_gradients(optax.chain(optax.adam(RATE), pruner))
        last = fit(task.model, tx, start, data, batches)
        zeros = {name: jnp.sum(x == 0) for name, x in kernels(last).items()}
        return accuracy(task.model, last, data), zeros

    levels = jnp.array(method.levels)

    def seed(*of_seed: Any) -> Any:
        return jax.vmap(lambda s: prune(s, *of_seed))(levels)

    found = jax.jit(jax.vmap(seed))(
        task.fresh, task.dense, task.data, task.batches, task.keys
    )
    one = kernels(jax.tree.map(lambda x: x[0], task.fresh))
    sizes = {name: x.size for name, x in one.items()}
    return Cells(*jax.device_get(found), sizes)


def run_dense(task: Task) -> np.ndarray:
    """The accuracy without pruning, for the same number of steps."""

    def seed(dense: Any, data: Data, batches: Any) -> jax.Array:
        last = fit(task.model, optax.adam(RATE), dense, data, batches)
        return accuracy(task.model, last, data)

    rest = task.batches[:, task.batches.shape[1] // 2 :]
    seeds = jax.jit(jax.vmap(seed))
    return np.asarray(seeds(task.dense, task.data, rest))


def mean_and_error(accuracies: np.ndarray) -> tuple[float, float]:
    """Over the seeds, of which one alone has no standard error."""
    error = accuracies.std(ddof=1) / np.sqrt(len(accuracies))
    return float(accuracies.mean()), float(error)


class Results(NamedTuple):
    """The table of one task."""

    dense: np.ndarray
    cells: dict[Method, Cells]


def table(results: dict[str, Results]) -> str:
    """In markdown."""

    def cell(accuracies: np.ndarray) -> str:
        mean, error = mean_and_error(accuracies)
        return f"{mean:.1f} ± {error:.1f}"

    def line(*texts: str) -> str:
        return f"| {' | '.join(texts)} |"

    levels = [f"{s:.0%}" for s in SPARSITIES]
    head = ("data", "structure", "criterion", "allocation", *levels)
    lines = [line(*head), line(*4 * ("---",), *6 * ("--:",))]
    for name, (dense, rows) in results.items():
        lines.append(line(name, "none: dense", "", "", *6 * (cell(dense),)))
        for method, cells in rows.items():
            found = dict(zip(method.levels, cells.accuracy.T, strict=True))
            calls = [f"`{call}`" for call in method[:3]]
            if method.where is not None:
                calls[0] += f", {PARTS[method.where]}"
            shown = [cell(found[s]) if s in found else "" for s in SPARSITIES]
            lines.append(line(name, *calls, *shown))
    return "\n".join(lines)


def by_layer(results: dict[str, Results], sparsity: float) -> str:
    """In markdown: what each kernel of the blocks loses, in percent."""
    columns: dict[str, dict[str, float]] = {}
    for name, (_, rows) in results.items():
        for method, cells in rows.items():
            if method.where == BLOCKS:
                level = method.levels.index(sparsity)
                columns[f"`{method.allocation}`, {name.split()[-1]}"] = {
                    layer: 100 * zeros[:, level].mean() / cells.sizes[layer]
                    for layer, zeros in cells.zeros.items()
                    if layer.startswith("blocks")
                }
    lines = [f"| kernels at {sparsity:.0%} | {' | '.join(columns)} |"]
    lines += [f"|---|{len(columns) * '--:|'}"]
    for layer in next(iter(columns.values())):
        shares = [f"{column[layer]:.2f}" for column in columns.values()]
        lines.append(f"| {layer} | {' | '.join(shares)} |")
    return "\n".join(lines)


def plot(results: dict[str, Results], path: str) -> None:
    """Criteria, allocations and structures side by side, one row per task."""
    from matplotlib.figure import Figure

    def is_plain(method: Method) -> bool:
        return method.where is None

    panels: dict[str, tuple[Callable[[Method], bool], str]] = {
        "criteria, global_ranking": (
            lambda m: is_plain(m) and m.allocation == "global_ranking()",
            "criterion",
        ),
        "allocations, magnitude": (
            lambda m: is_plain(m) and m.criterion == "magnitude()",
            "allocation",
        ),
        "structures, magnitude, uniform": (
            lambda m: (
                not is_plain(m)
                and m.criterion == "magnitude()"
                and m.allocation == "uniform()"
                and m.levels == SPARSITIES
            ),
            "structure",
        ),
    }
    figure = Figure((12, 7), layout="constrained")
    grid = figure.subplots(len(results), len(panels), squeeze=False)
    places = range(len(SPARSITIES))
    for row, (name, (dense, rows)) in zip(grid, results.items(), strict=True):
        for ax, (title, (shown, field)) in zip(
            row, panels.items(), strict=True
        ):
            for method, cells in rows.items():
                if shown(method):
                    pairs = [mean_and_error(a) for a in cells.accuracy.T]
                    means, errors = zip(*pairs, strict=True)
                    label = getattr(method, field).split("(loss")[0]
                    ax.errorbar(places, means, errors, label=label, lw=1)
            ax.axhline(dense.mean(), color="grey", ls=":", label="dense")
            ax.set_xticks(places, [f"{s:.0%}" for s in SPARSITIES])
            ax.set(title=f"{name}: {title}", xlabel="sparsity")
            ax.legend(fontsize=7)
        row[0].set_ylabel("test accuracy, %")
    figure.savefig(path, dpi=70)


def benchmark(
    seeds: int, steps: int, chosen: Sequence[Method]
) -> dict[str, Results]:
    """All methods on their tasks; while one compiles, another runs."""
    names = dict.fromkeys(n for m in chosen for n in m.tasks)
    tasks = {name: make_task(name, seeds, steps) for name in names}
    jobs = [(n, m) for n in tasks for m in chosen if n in m.tasks]
    results = {n: Results(run_dense(task), {}) for n, task in tasks.items()}
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda job: run(job[1], tasks[job[0]]), jobs)
        bar = tqdm(zip(jobs, found, strict=True), total=len(jobs), unit="row")
        for (name, method), cells in bar:
            results[name].cells[method] = cells
    return results


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--seeds", type=int, default=10, help="at least 2 (default: 10)")
    add("--steps", type=int, default=200, help="of each half (default: 200)")
    add("--quick", action="store_true", help="2 seeds, 20 steps, some rows")
    add("--only", choices=("mlps", "networks"), help="one of the tables")
    add("--plot", metavar="FILE", help="save the plot of the MLPs")
    args = parser.parse_args(argv)
    if args.seeds < 2 or args.steps < 20:
        parser.error("at least 2 seeds and 20 steps are needed")
    if args.plot and args.only == "networks":
        parser.error("--plot shows the MLPs")
    begin, busy = time.perf_counter(), time.process_time()
    chosen = {"mlps": list(methods()), "networks": list(network_methods())}
    if args.quick:
        args.seeds, args.steps, args.only = 2, 20, args.only or "mlps"
        chosen["mlps"] = chosen["mlps"][::12]
        del chosen["networks"][3:]
    found = {
        name: benchmark(args.seeds, args.steps, some)
        for name, some in chosen.items()
        if some and args.only in (None, name)
    }
    print("\n\n".join(map(table, found.values())))
    if "networks" in found:
        print(f"\n{by_layer(found['networks'], 0.9)}")
    wall, cpu = time.perf_counter() - begin, time.process_time() - busy
    print(
        f"\n{args.seeds} seeds, 2 x {args.steps} steps, {wall:.0f} s "
        f"({cpu:.0f} s of processor time) on {os.cpu_count()} cores, "
        f"jax {jax.__version__}, {jax.devices()[0].platform}."
    )
    if args.plot:
        plot(found["mlps"], args.plot)


if __name__ == "__main__":
    main()
