"""Medicine: the fewest measurements that a network needs.

    python examples/benchmarks/medicine.py

Two data sets of scikit-learn. "breast cancer": is a tumour malignant, by
30 measurements of cell nuclei of 569 patients. "diabetes": does the disease
advance more than in half of 442 patients, by 10 measurements of a year before.

For each seed patients are divided: half of them train a network with 32 hidden
units by AdamW, a quarter judge, and a quarter test, unseen by `compress`.
`compress` removes whole inputs (`channel(0)` of the first kernel), repairs the
rest, and trains it once more on the patients of the first half. Its holdout are
those who are ill, of the quarter that judges: it goes on as long as the loss of
recall, the fraction of them that is found, is below 5 points (diabetes: 10)
with a confidence of 95 %. The table says what that costs those who are not ill.

"accuracy" is of all patients, "healthy" of those who are not ill. "noisy" is
the accuracy with Gaussian noise on the measurements, of .2 standard deviations.
Numbers are means over the seeds with standard errors, in percent, of the
patients that test. Few patients promise little: margins are wide, and the table
shows what they allow.
"""

import argparse
import os
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from served import mean
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import jprune
from jprune.models import MLP

STEPS = 300
TOLERANCE = {"breast cancer": 0.05, "diabetes": 0.1}
MODEL = MLP((32, 2))
FIRST = "Dense_0/kernel"


class Patients(NamedTuple):
    """Measurements, and who is ill."""

    x: np.ndarray
    y: np.ndarray


def load(name: str) -> tuple[Patients, list[str]]:
    """Patients, and what was measured."""
    if name == "breast cancer":
        bunch = load_breast_cancer()
        y = bunch.target == 0
    else:
        bunch = load_diabetes()
        y = bunch.target > np.median(bunch.target)
    names = [str(x) for x in bunch.feature_names]
    return Patients(bunch.data.astype(np.float32), y.astype(np.int32)), names


def divide(whole: Patients, seed: int) -> list[Patients]:
    """To train, to judge, and to test; scaled by those who train."""
    how: Any = {"random_state": seed, "test_size": 0.5}
    x, rest, y, y_rest = train_test_split(*whole, stratify=whole.y, **how)
    a, b, y_a, y_b = train_test_split(rest, y_rest, stratify=y_rest, **how)
    mean, std = x.mean(0), x.std(0)
    return [
        Patients((p - mean) / std, q) for p, q in ((x, y), (a, y_a), (b, y_b))
    ]


def fit(params: Any, patients: Patients, masks: Any = None) -> Any:
    """Trains on all patients at each step; what is masked stays 0."""
    tx = optax.adamw(optax.cosine_decay_schedule(1e-2, STEPS), weight_decay=0.1)
    if masks is not None:
        tx = optax.chain(tx, jprune.keep_masks(masks))

    def loss(params: Any) -> jax.Array:
        logits = MODEL.apply(params, patients.x)
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits, patients.y
        )
        return losses.mean()

    @jax.jit
    def run(params: Any) -> Any:
        def step(carry: Any, _: None) -> Any:
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        carry = params, tx.init(params)
        return jax.lax.scan(step, carry, length=STEPS)[0][0]

    return run(params)


def again(fn: Any, params: Any, masks: Any, *, patients: Patients) -> Any:
    """As `compress` calls it; ``fn`` is the model's own."""
    del fn
    return fit(params, patients, masks)


class Scores(NamedTuple):
    """In percent."""

    recall: float
    healthy: float
    accuracy: float
    noisy: float


def scores(params: Any, patients: Patients) -> Scores:
    """Of patients that test."""
    x, y = patients
    noise = np.random.default_rng(0).normal(size=x.shape).astype(np.float32)
    right = np.asarray(MODEL.apply(params, x).argmax(-1) == y)
    noisy = np.asarray(MODEL.apply(params, x + 0.2 * noise).argmax(-1) == y)
    found = right[y == 1], right[y == 0], right, noisy
    return Scores(*(100 * float(part.mean()) for part in found))


def show(name: str, seeds: int) -> None:
    """Prints what is left of one data set's measurements."""
    whole, names = load(name)
    table: dict[str, list[Scores]] = {"dense": [], "small": []}
    left, reads = [], Counter[str]()
    # Others than those that the set-up was tried with.
    for seed in tqdm(range(100, 100 + seeds), name, leave=False):
        train, judge, test = divide(whole, seed)
        fresh = MODEL.init(jax.random.key(seed), train.x)
        params = fit(fresh, train)
        most, ill = len(names), judge.y == 1
        result = jprune.compress(
            MODEL.apply,
            params,
            [(train.x,)],
            holdout=[(judge.x[ill], judge.y[ill])],
            inputs=1,
            score=lambda logits, x, y: logits.argmax(-1) == y,
            structure=jprune.structures.channel(0),
            where=FIRST,
            finetune=partial(again, patients=train),
            tolerance=TOLERANCE[name],
            by="parameters",
            budgets=shares(params, most),
            seed=seed,
        )
        kernel = result.params["params"]["Dense_0"]["kernel"]
        kept = np.asarray(kernel != 0).any(1)
        left.append(float(kept.sum()))
        reads.update(np.array(names)[kept].tolist())
        for row, one in (("dense", params), ("small", result.params)):
            table[row].append(scores(one, test))
        if seed == 100:
            print(f"\n{name}, seed {seed}\n{result.front}\n{result.promise}")
    print(f"\n{name}: {mean(left, 1)} of {most} measurements are left")
    print(f"{'':10}" + "".join(f"{part:>14}" for part in Scores._fields))
    for row, found in table.items():
        cells = (f"{mean(part, 1):>14}" for part in zip(*found, strict=True))
        print(f"{row:10}", *cells, sep="")
    often = ", ".join(f"{k} ({n})" for k, n in reads.most_common(8))
    print(f"most often left, of {seeds} seeds: {often}", flush=True)


def shares(params: Any, inputs: int) -> list[float]:
    """Of the parameters, with fewer and fewer inputs."""
    size = sum(x.size for x in jax.tree.leaves(params))
    width = params["params"]["Dense_0"]["kernel"].shape[1]
    counts = sorted({round(inputs * 0.8**i) for i in range(1, 16)} - {0})
    return [(size - width * (inputs - n)) / size for n in reversed(counts)]


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5, help="at least 2")
    args = parser.parse_args(argv)
    begin = time.perf_counter()
    for name in TOLERANCE:
        show(name, args.seeds)
    print(
        f"\n{time.perf_counter() - begin:.0f} s on {os.cpu_count()} cores, "
        f"jax {jax.__version__}, {jnp.ones(1).device.platform}."
    )


if __name__ == "__main__":
    main()
