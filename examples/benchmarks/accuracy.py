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
    task: str = ""  # if only one has layers of fitting sizes


def methods() -> Iterator[Method]:
    """All that make sense."""
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
        if structure.startswith(("n_m", "channel(-2, ")):
            continue
        yield hidden(structure)
        if structure in ("unstructured()", "fan_in()"):
            yield hidden(structure, allocation="erdos_renyi()")
        if structure != "fan_in()":  # its numbers are equal: no ranking
            yield hidden(structure, allocation="global_ranking()")
    # Every m must divide the inputs of each layer: 64 and 300, or 30 and 300.
    yield hidden("n_m(2, 4)", levels=(0.5,), task="digits")
    yield hidden("n_m(1, 10)", levels=(0.5, 0.8, 0.9), task="breast cancer")
    for criterion in ("random()", "taylor()", "fisher()"):
        yield hidden("channel(-2)", criterion)
    # Signs must not be lost in a norm.
    for criterion in ('taylor("squared")', "movement()"):
        yield hidden('channel(-2, pooling="mean")', criterion)


class Data(NamedTuple):
    """Rows to train on and to test with; a leading axis runs over the seeds."""

    x: jax.Array
    y: jax.Array
    x_test: jax.Array
    y_test: jax.Array


class Task(NamedTuple):
    """What the methods share; leading axes run over the seeds."""

    model: MLP
    data: Data
    keys: jax.Array
    batches: jax.Array  # [seeds, steps, rows], of both halves of the training
    fresh: Any  # parameters before the training
    dense: Any  # and after its first half


def make_task(name: str, seeds: int, steps: int) -> Task:
    """Loads the data and trains the dense networks."""
    load = {"digits": load_digits, "breast cancer": load_breast_cancer}[name]
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
    model = MLP((300, 100, int(y.max()) + 1))
    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    fresh = jax.vmap(lambda key, x: model.init(key, x)["params"])(keys, data.x)
    draw = partial(jax.random.randint, shape=(2 * steps, BATCH), minval=0)
    batches = jax.vmap(partial(draw, maxval=data.x.shape[1]))(keys)
    train = jax.jit(jax.vmap(partial(fit, model, optax.adam(RATE))))
    dense = train(fresh, data, batches[:, :steps])
    return Task(model, data, keys, batches, fresh, dense)


def cross_entropy(model: MLP, params: Any, batch: Any) -> jax.Array:
    x, y = batch
    logits = model.apply({"params": params}, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def fit(model: MLP, tx: Any, params: Any, data: Data, batches: Any) -> Any:
    """Trains for as many steps as there are batches."""
    loss = partial(cross_entropy, model)

    def step(carry: Any, rows: jax.Array) -> tuple[Any, None]:
        params, state = carry
        grads = jax.grad(loss)(params, (data.x[rows], data.y[rows]))
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    carry = params, tx.init(params)
    return jax.lax.scan(step, carry, batches)[0][0]


def accuracy(model: MLP, params: Any, data: Data) -> jax.Array:
    found = model.apply({"params": params}, data.x_test).argmax(-1)
    return 100 * jnp.mean(found == data.y_test)


class Cells(NamedTuple):
    """What came out, for each seed and sparsity."""

    accuracy: np.ndarray  # percent, [seeds, levels]
    zeros: dict[str, np.ndarray]  # in each kernel


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
    ) -> Any:
        criterion = CRITERIA[method.criterion]
        start, target = dense, lambda count: sparsity * ramp(count)
        if criterion is None:
            loss = partial(cross_entropy, task.model)
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
        params = fit(task.model, tx, start, data, batches)
        zeros = {name: jnp.sum(p["kernel"] == 0) for name, p in params.items()}
        return Cells(accuracy(task.model, params, data), zeros)

    levels = jax.vmap(prune, in_axes=(0, *5 * (None,)))
    seeds = jax.vmap(levels, in_axes=(None, *5 * (0,)))
    found = jax.jit(seeds)(
        jnp.array(method.levels),
        task.fresh,
        task.dense,
        task.data,
        task.batches,
        task.keys,
    )
    return jax.device_get(found)


def run_dense(task: Task) -> np.ndarray:
    """The accuracy without pruning, for the same number of steps."""

    def seed(params: Any, data: Data, batches: Any) -> jax.Array:
        params = fit(task.model, optax.adam(RATE), params, data, batches)
        return accuracy(task.model, params, data)

    rest = task.batches[:, task.batches.shape[1] // 2 :]
    return np.asarray(jax.jit(jax.vmap(seed))(task.dense, task.data, rest))


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
            calls[0] += ", hidden" if method.where else ""
            shown = [cell(found[s]) if s in found else "" for s in SPARSITIES]
            lines.append(line(name, *calls, *shown))
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
    """All methods on both tasks; while one compiles, another runs."""
    tasks = {
        name: make_task(name, seeds, steps)
        for name in ("digits", "breast cancer")
    }
    jobs = [(n, m) for n in tasks for m in chosen if m.task in ("", n)]
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
    add("--plot", metavar="FILE", help="save the plot")
    args = parser.parse_args(argv)
    if args.seeds < 2 or args.steps < 20:
        parser.error("at least 2 seeds and 20 steps are needed")
    begin, busy = time.perf_counter(), time.process_time()
    chosen = list(methods())
    if args.quick:
        args.seeds, args.steps, chosen = 2, 20, chosen[::12]
    results = benchmark(args.seeds, args.steps, chosen)
    print(table(results))
    wall, cpu = time.perf_counter() - begin, time.process_time() - busy
    print(
        f"\n{args.seeds} seeds, 2 x {args.steps} steps, {wall:.0f} s "
        f"({cpu:.0f} s of processor time) on {os.cpu_count()} cores, "
        f"jax {jax.__version__}, {jax.devices()[0].platform}."
    )
    if args.plot:
        plot(results, args.plot)


if __name__ == "__main__":
    main()
