"""Pruned without training: what one-shot pruning keeps of three trained models.

    python examples/benchmarks/one_shot.py --data mnist.npz --cache models \
        --model MODEL_DIR --text sentences.txt

The models are those of `one_shot_models.py`: an MLP and a CNN that learned
MNIST, one for each seed, and a pretrained encoder of sentences. Each is pruned
with 1,024 training images (256 sentences), without labels, and judged on the
test images (256 other sentences). Nothing is trained afterwards. Cells are
means over the seeds of what is lost beside each seed's own dense model, in
points of accuracy, with the standard error; of the encoder, of which there is
one, the mean cosine to what the dense encoder says of the same sentence. In
each column all prune the same share of each layer (`uniform()`), but for the
row "... and Erdos-Renyi": as many weights of all layers, small ones denser.

Last the MLP without half of its units is compacted, and called in turn with the
dense one, with 1, 32 and 256 images. Seconds are those of a processor that
`one_shot` takes.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
from one_shot_models import (
    Model,
    accuracy,
    cosine,
    encoder,
    images,
    read_lines,
    sentences,
    trained,
)
from served import faster, gained, mean, total_bytes
from shrinking import load
from tqdm import tqdm

import jprune
from jprune import allocations, solvers, structures

UNIFORM = allocations.uniform()


class Case(NamedTuple):
    """A model, the inputs it is pruned with, and how it is judged."""

    model: Model
    batches: list[Any]
    score: Callable[[Any], float]
    weights: Any = None


Method = Callable[[Case, float], Any]


def magnitude(case: Case, sparsity: float) -> Any:
    """The smallest weights go, and nothing is repaired."""
    masks = jprune.find_masks(
        case.model.params, sparsity, allocation=UNIFORM, **where(case)
    )
    return jprune.apply_masks(case.model.params, masks)


def wanda(case: Case, sparsity: float) -> Any:
    """By |w| |x| for each output, and nothing is repaired."""
    return one_shot(
        solver=solvers.mask_only(),
        structure=structures.fan_in(axes=jprune.trace_products(*call(case))),
        by="activation",
    )(case, sparsity)


def refit(case: Case, sparsity: float) -> Any:
    """By magnitude, and what stays is solved for."""
    masks = jprune.find_masks(
        case.model.params, sparsity, allocation=UNIFORM, **where(case)
    )
    fn, params = case.model
    stats = jprune.calibrate(fn, params, case.batches, weights=case.weights)
    return jprune.refit(params, masks, stats)


def one_shot(by: str | None = None, **how: Any) -> Method:
    """`jprune.one_shot` with these options."""

    def method(case: Case, sparsity: float) -> Any:
        fn, params = case.model
        more = dict(how)
        if by == "activation":
            stats = jprune.calibrate(
                fn, params, case.batches, weights=case.weights
            )
            more["criterion"] = jprune.criteria.activation(stats)
        return jprune.one_shot(
            fn,
            params,
            case.batches,
            sparsity,
            weights=case.weights,
            **where(case),
            **more,
        ).params

    return method


def units(pools: Any = None, **how: Any) -> Method:
    """Whole units, of all pools or some."""

    def method(case: Case, sparsity: float) -> Any:
        fn, params = case.model
        structure = jprune.units(jprune.trace_units(*call(case)), where=pools)
        if how.get("solver") == "magnitude":
            masks = jprune.find_masks(params, sparsity, structure=structure)
            return jprune.apply_masks(params, masks)
        return jprune.one_shot(
            fn,
            params,
            case.batches,
            sparsity,
            structure=structure,
            weights=case.weights,
            **how,
        ).params

    return method


def call(case: Case) -> tuple[Any, ...]:
    """The function, its parameters and one batch."""
    return (*case.model, *case.batches[0])


def where(case: Case) -> dict[str, str]:
    """The encoder's 36 kernels; elsewhere the default."""
    return {"where": "kernel"} if "layers" in case.model.params else {}


def heads(pool: Any) -> bool:
    """Pools of whole heads; other pools of queries are parts of each."""
    paths = " ".join(path for path, _ in pool.axes)
    return "query/kernel" in paths and "value/kernel" in paths


WEIGHTS: dict[str, Method] = {
    "magnitude": magnitude,
    "Wanda": wanda,
    "SparseGPT": one_shot(solver=solvers.sparsegpt()),
    "magnitude + refit": refit,
    "ADMM": one_shot(),
    "ADMM, dense targets": one_shot(targets="dense"),
    "... and Erdos-Renyi": one_shot(
        targets="dense", allocation=allocations.erdos_renyi()
    ),
}


def of_units(pools: Any = None) -> dict[str, Method]:
    """The rows of a table of units."""
    return {
        "magnitude": units(pools, solver="magnitude"),
        "OBS": units(pools),
        "OBS, dense targets": units(pools, targets="dense"),
    }


TABLES = {
    "mlp": [
        ("weights", WEIGHTS, (0.5, 0.8, 0.9, 0.95)),
        ("2:4", {"ADMM": one_shot(structure=structures.n_m(2, 4))}, (0.5,)),
        ("units", of_units(), (0.5, 0.75, 0.9)),
    ],
    "cnn": [
        (
            "weights",
            {name: WEIGHTS[name] for name in WEIGHTS if name != "Wanda"},
            (0.7, 0.8, 0.9),
        ),
        ("units", of_units(), (0.5, 0.75)),
    ],
    "encoder": [
        ("weights", WEIGHTS, (0.5, 0.7)),
        ("hidden units", of_units("up/kernel"), (0.25, 0.5, 0.75)),
        ("heads", of_units(heads), (0.25, 0.5, 0.75)),
    ],
}


def cases(name: str, args: argparse.Namespace) -> Iterable[Case]:
    """The models of a table."""
    if name == "encoder":
        yield sentence_case(args)
        return
    data = load(args.data)
    for seed in range(args.seeds):
        model = trained(name, data, seed, args.cache)
        x = images(data.x[: args.rows])

        def score(params: Any, model: Model = model) -> float:
            return accuracy(Model(model.fn, params), data)

        yield Case(model, [(x,)], score)


def sentence_case(args: argparse.Namespace) -> Case:
    """The encoder, sentences to prune it with, and others."""
    model = encoder(args.model)
    lines = read_lines(args.text)
    ids, mask = sentences(args.model, lines[: args.sentences], 32)
    parts = [slice(i, i + 128) for i in range(0, len(ids), 128)]
    others = sentences(args.model, lines[3000 : 3000 + args.sentences], 32)
    fn = jax.jit(model.fn)
    dense = fn(model.params, *others)

    def score(params: Any) -> float:
        return float(np.mean(cosine(dense, fn(params, *others))))

    batches = [(ids[part], mask[part]) for part in parts]
    return Case(model, batches, score, lambda ids, mask: mask)


def table(
    name: str, every: list[Case], methods: dict[str, Method], sparsities: Any
) -> list[str]:
    """The rows of one table."""
    dense = [case.score(case.model.params) for case in every]
    lines = [f"{'':22}" + "".join(f"{100 * s:>14g} %" for s in sparsities)]
    for method, run in tqdm(methods.items(), desc=name):
        cells = []
        for sparsity in sparsities:
            found = [case.score(run(case, sparsity)) for case in every]
            if len(every) == 1:
                cells.append(f"{found[0]:.3f}")
                continue
            lost = np.subtract(found, dense)
            error = np.std(lost, ddof=1) / np.sqrt(len(lost))
            cells.append(f"{np.mean(lost):.2f} +- {error:.2f}")
        lines.append(f"{method:22}" + "".join(f"{x:>16}" for x in cells))
    return lines


def served(every: list[Case]) -> list[str]:
    """What a network gains that loses half of its units."""
    products, sizes, fast, seconds = [], [], [], []
    for case in every:
        fn, params = case.model
        start = time.process_time()
        structure = jprune.units(jprune.trace_units(*call(case)))
        result = jprune.one_shot(
            fn, params, case.batches, 0.5, structure=structure
        )
        jax.block_until_ready(result.params)
        seconds.append(time.process_time() - start)
        small = jprune.compact(
            fn, result.params, *case.batches[0], masks=result.masks
        )
        cost = jprune.report.cost(
            fn, result.params, *case.batches[0], masks=result.masks
        )
        products.append(
            100 * cost.compact.multiply_adds / cost.dense.multiply_adds
        )
        sizes.append((total_bytes(params), total_bytes(small.params)))
        fast.append(
            faster((fn, params), (small.fn, small.params), *case.batches[0])
        )
    return [
        f"half of the units: {mean(products, 1)} % of the multiply-adds, "
        f"{gained(sizes, fast)}, {mean(seconds, 1)} seconds"
    ]


def main(argv: list[str] | None = None) -> dict[str, list[str]]:
    """Prints the tables; returns their lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data",
        default=os.environ.get("MNIST"),
        help="mnist.npz (default: scikit-learn's copy)",
    )
    parser.add_argument("--cache", help="a folder for what is trained")
    parser.add_argument("--model", help="the encoder's folder")
    parser.add_argument("--text", help="sentences, one a line")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--sentences", type=int, default=256)
    parser.add_argument("--only", nargs="*", default=[*TABLES])
    parser.add_argument("--methods", nargs="*", help="rows of the tables")
    parser.add_argument("--removed", nargs="*", help="weights, units, served")
    args = parser.parse_args(argv)
    found = {}
    for name in args.only:
        if name == "encoder" and not (args.model and args.text):
            print("encoder: needs --model and --text")
            continue
        start = time.perf_counter()
        every = list(cases(name, args))
        dense = np.mean([case.score(case.model.params) for case in every])
        print(f"\n{name}: dense {dense:.2f}", flush=True)
        for what, methods, sparsities in TABLES[name]:
            if args.removed and what not in args.removed:
                continue
            rows = {
                row: methods[row]
                for row in methods
                if not args.methods or row in args.methods
            }
            lines = table(f"{name}, {what}", every, rows, sparsities)
            print(f"\n{what} removed", *lines, sep="\n", flush=True)
            found[f"{name}, {what}"] = lines
        if name == "mlp" and (not args.removed or "served" in args.removed):
            found["served"] = served(every)
            print(*found["served"], sep="\n", flush=True)
        print(f"{time.perf_counter() - start:.0f} s")
    print(f"\njax {jax.__version__}, {jax.devices()[0].platform}")
    return found


if __name__ == "__main__":
    main()
