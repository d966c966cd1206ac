"""How much where: fixed rules beside curves, and what `compress` promises.

    python examples/benchmarks/automatic.py --data mnist.npz

Three networks learn MNIST: an MLP 784-300-100-10, a CNN of four convolutions
with BatchNorm, and a residual MLP with LayerNorm before each of its four
blocks. Each is pruned once, by whole units, to 1/2, 1/4 and 1/8 of its
multiply-adds, and fine-tuned for 100 steps on the labels, with what is pruned
at 0. Cells are the accuracy on 10,000 test images, means of the seeds with
standard errors.

Rules: "uniform" prunes the same share of each layer, "one ranking" the units
with the smallest scores of all (`global_ranking`), "per cost" divides the
scores by what a unit costs, "curves" is `sensitivity` and `fit`. Scores are
the sums of magnitudes or `gauss_newton` on 256 images, without labels.

Then `compress` makes the MLP as small as a promise allows: at most one point
lost with a confidence of 95 %, on 8,000 of the test images, repaired and
nothing more, and once more with 1,000 steps of `distill`. `--networks lenet5`
does the same with LeNet-5 (`--kinds repaired` leaves `distill` out). Bytes are
those of all parameters. How many times as fast as the dense network the result
is comes from interleaved calls; minutes are those of processors in `compress`.

`--only repaired` asks whether curves should be measured on repaired models:
for each level of each pool the MLP is pruned and repaired by `one_shot`.
Budgets are divided by these curves and by the plain ones. Accuracy is that
after `one_shot`, without any training.

`--data` is as in `shrinking.py`.
"""

import argparse
import os
import re
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from lenet import LeNet5
from served import faster, gained, mean, total_bytes
from shrinking import Data, load
from tqdm import tqdm

import jprune
from jprune import allocations, criteria, search
from jprune.models import MLP

BATCH = 128
TUNED = 100  # steps of fine-tuning
BUDGETS = (0.5, 0.25, 0.125)


class CNN(nn.Module):
    """Four convolutions with BatchNorm, two of them with strides."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps images ``[n, 784]`` to logits ``[n, 10]``."""
        x = x.reshape(-1, 28, 28, 1)
        for size, stride in ((16, 2), (32, 1), (32, 2), (64, 1)):
            x = nn.Conv(size, (3, 3), stride, use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(not train, momentum=0.9)(x))
        return nn.Dense(10)(x.mean((1, 2)))


class Residual(nn.Module):
    """A residual MLP, normalised before each block."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps images ``[n, 784]`` to logits ``[n, 10]``."""
        x = nn.Dense(64)(x)
        for _ in range(4):
            inside = nn.relu(nn.Dense(128)(nn.LayerNorm()(x)))
            x = x + nn.Dense(64)(inside)
        return nn.Dense(10)(nn.LayerNorm()(x))


class Plain(nn.Module):
    """A network that does the same in training, at first the MLP."""

    make: Callable[[], nn.Module] = partial(MLP, (300, 100, 10))

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Maps images ``[n, 784]`` to logits ``[n, 10]``."""
        return self.make()(x)


NETWORKS = {
    "mlp": Plain(),
    "cnn": CNN(),
    "res": Residual(),
    "lenet5": Plain(LeNet5),
}
EPOCHS = {"mlp": 10, "cnn": 2, "res": 5, "lenet5": 2}


class Net(NamedTuple):
    """A trained network; ``variables`` holds statistics too."""

    module: Any
    variables: Any

    def fn(self, variables: Any, x: jax.Array) -> jax.Array:
        """Logits, by the running statistics."""
        return self.module.apply(variables, x)

    def by_batch(self, variables: Any, x: jax.Array) -> jax.Array:
        """Logits, by the statistics of the batch."""
        return self.module.apply(
            variables, x, train=True, mutable=["batch_stats"]
        )[0]


def pixels(x: Any) -> Any:
    """From 0 to 1."""
    return np.asarray(x) / np.float32(255)


def fit(
    module: Any,
    variables: Any,
    data: Data,
    steps: int,
    rate: float,
    seed: int,
    masks: Any = None,
) -> Any:
    """Trains variables for some steps; what is masked stays 0."""
    schedule = optax.cosine_decay_schedule(rate, steps)
    tx = optax.adam(schedule)
    if masks is not None:
        tx = optax.chain(tx, jprune.keep_masks(masks["params"]))

    def loss(params: Any, rest: Any, x: Any, y: Any) -> Any:
        logits, rest = module.apply(
            {"params": params, **rest}, x, train=True, mutable=["batch_stats"]
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        return losses.mean(), rest

    @jax.jit
    def step(params: Any, rest: Any, state: Any, x: Any, y: Any) -> Any:
        grads, rest = jax.grad(loss, has_aux=True)(params, rest, x, y)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), rest, state

    variables = dict(variables)
    params = variables.pop("params")
    state = tx.init(params)
    rng = np.random.default_rng(seed)
    x, y = np.asarray(data.x), np.asarray(data.y)
    for _ in range(steps):
        rows = rng.integers(0, len(y), BATCH)
        params, variables, state = step(
            params, variables, state, pixels(x[rows]), y[rows]
        )
    new = {"params": params, **variables}
    return new if masks is None else jprune.apply_masks(new, masks)


def accuracy(net: Net, variables: Any, data: Data) -> float:
    """Of the test images, in percent."""
    run = jax.jit(net.fn)
    x, y = np.asarray(data.x_test), np.asarray(data.y_test)
    right = 0
    for i in range(0, len(y), 1000):
        logits = run(variables, pixels(x[i : i + 1000]))
        right += int((np.argmax(logits, -1) == y[i : i + 1000]).sum())
    return 100 * right / len(y)


Rule = Callable[[Net, Any, Any, float], Any]  # masks at a budget


def ruled(
    allocation: Any, score: Callable[[Net, Any], Any], per_cost: bool = False
) -> Rule:
    """A fixed rule, by some scores."""

    def masks(net: Net, x: Any, seen: dict[str, Any], budget: float) -> Any:
        graph = seen["graph"]
        criterion = score(net, x)
        if per_cost:
            criterion = divided(criterion, graph)
        return jprune.find_masks(
            net.variables,
            1 - budget,
            criterion=criterion,
            structure=jprune.units(graph, by="multiply_adds"),
            allocation=allocation,
        )

    return masks


def divided(criterion: Any, graph: Any) -> Any:
    """Squared scores of units by what a unit of their pool costs."""
    cost = jprune.units(graph).costs("multiply_adds")
    pools = len(graph.pools)
    each = cost.whole - cost.at(1 - np.eye(pools))
    price = each / np.array([pool.units.size for pool in graph.pools])
    of_units = criterion.of_units

    def scores(params: Any, state: Any, members: Any) -> Any:
        found = of_units(params, state, members)
        return [x**2 / p for x, p in zip(found, price, strict=True)]

    return criterion._replace(of_units=scores)


def curves(net: Net, x: Any, seen: dict[str, Any], budget: float) -> Any:
    """What `sensitivity` and `fit` say."""
    structure = jprune.units(seen["graph"])
    criterion = gauss_newton(net, x)
    if "curves" not in seen:
        seen["curves"] = search.sensitivity(
            net.by_batch,
            net.variables,
            [x],
            structure=structure,
            criterion=criterion,
        )
    found = search.fit(seen["curves"], {"multiply_adds": budget})
    return jprune.find_masks(
        net.variables,
        found.sparsity,
        criterion=criterion,
        structure=structure,
        allocation=allocations.fitted(found),
    )


def magnitude(net: Net, x: Any) -> Any:
    """Sums of magnitudes."""
    return criteria.magnitude()


def gauss_newton(net: Net, x: Any) -> Any:
    """What the outputs feel."""
    return criteria.gauss_newton(net.fn, net.variables, x)


UNIFORM, RANKING = allocations.uniform(), allocations.global_ranking()
RULES: dict[str, Any] = {
    "uniform, magnitude": ruled(UNIFORM, magnitude),
    "uniform, gauss_newton": ruled(UNIFORM, gauss_newton),
    "one ranking, magnitude": ruled(RANKING, magnitude),
    "one ranking, gauss_newton per cost": ruled(RANKING, gauss_newton, True),
    "curves, gauss_newton": curves,
}


def rules(name: str, nets: list[Net], data: Data) -> None:
    """Prints the table of one network."""
    cells: dict[Any, list[float]] = {}
    dense = [accuracy(net, net.variables, data) for net in nets]
    bar = tqdm(total=len(nets) * len(RULES) * len(BUDGETS), desc=name)
    for seed, net in enumerate(nets):
        x = pixels(data.x[:256])
        seen = {"graph": jprune.trace_units(net.fn, net.variables, x[:1])}
        for rule, masks_of in RULES.items():
            for budget in BUDGETS:
                masks = masks_of(net, x, seen, budget)
                cut = jprune.apply_masks(net.variables, masks)
                new = fit(
                    net.module, cut, data, TUNED, 1e-3, 1000 + seed, masks
                )
                one = accuracy(net, new, data)
                cells.setdefault((rule, budget), []).append(one)
                bar.update()
    bar.close()
    print(f"\n{name}, dense {mean(dense)}")
    print(f"{'left of the multiply-adds':36}", *(f"{b:14.1%}" for b in BUDGETS))
    for rule in RULES:
        row = (f"{mean(cells[rule, b]):>14}" for b in BUDGETS)
        print(f"{rule:36}", *row, flush=True)
    for budget in BUDGETS:
        best = max(np.mean(cells[rule, budget]) for rule in list(RULES)[:-1])
        here = np.mean(cells["curves, gauss_newton", budget])
        alike = np.mean(cells["uniform, gauss_newton", budget])
        print(
            f"at {budget:.1%} curves are {here - best:+.2f} points beside the "
            f"best fixed rule, {here - alike:+.2f} beside uniform, gauss_newton"
        )


def promises(
    name: str,
    nets: list[Net],
    seconds: list[float],
    data: Data,
    kinds: list[str],
) -> None:
    """Prints what `compress` makes of a network."""
    held = [
        (pixels(data.x_test[i : i + 1000]), data.y_test[i : i + 1000])
        for i in range(0, 8000, 1000)
    ]
    images = [
        (pixels(data.x[i : i + 1024]),) for i in range(0, 32 * 1024, 1024)
    ]
    print(f"\ncompress, {name}: 1 point, confidence 95 %, 8,000 images")
    for kind in kinds:
        left, lost, times, sizes, minutes, fast = [], [], [], [], [], []
        for net, whole in zip(nets, seconds, strict=True):
            start = time.process_time()
            finetune = None
            if kind == "distilled":
                tx = optax.adam(optax.cosine_decay_schedule(1e-3, 1000))
                finetune = jprune.distill(
                    net.fn, net.variables, images, tx, 1000
                )
            result = jprune.compress(
                net.fn,
                net.variables,
                images,
                holdout=held,
                inputs=1,
                score=lambda logits, x, y: logits.argmax(-1) == y,
                finetune=finetune,
                samples=8192,
            )
            busy = time.process_time() - start
            times.append(busy / whole)
            minutes.append(busy / 60)
            sizes.append(
                (total_bytes(net.variables), total_bytes(result.small.params))
            )
            dense = (net.fn, net.variables)
            small = (result.small.fn, result.small.params)
            fast.append(faster(dense, small, held[0][0]))
            point = result.point
            left.append(100 * point.fit.left["multiply_adds"] if point else 100)
            lost.append(100 * result.promise.loss)
            if net is nets[0]:
                print(f"\n{kind}, seed 0\n{result.front}\n{result}\n")
        print(
            f"{kind}: {mean(left, 1)} % of the multiply-adds left, "
            f"{mean(lost)} points lost, CPU seconds {mean(times)} times those "
            "of the training"
        )
        print(
            f"{kind}: {gained(sizes, fast)}, {mean(minutes, 1)} minutes",
            flush=True,
        )


def repaired_curves(nets: list[Net], data: Data) -> None:
    """Prints what curves of repaired models are worth."""
    images = [pixels(data.x[i : i + 1024]) for i in range(0, 4096, 1024)]
    few = images[0][:256]
    cells: dict[Any, list[float]] = {}
    for net in nets:
        graph = jprune.trace_units(net.fn, net.variables, few[:1])
        repair = partial(
            jprune.one_shot,
            net.fn,
            net.variables,
            images,
            structure=jprune.units(graph),
            targets="dense",
        )
        plain = search.sensitivity(
            net.fn, net.variables, [few], structure=jprune.units(graph)
        )
        run = jax.jit(net.fn)
        wanted = run(net.variables, few)
        losses = []
        for name, size, counts in zip(
            plain.names, plain.sizes, plain.counts, strict=True
        ):
            found = [0.0]
            for count in counts[1:]:
                share = {re.escape(name): 1 - int(count) / int(size)}
                new = repair(1.0, allocation=allocations.given(share)).params
                found.append(float(search.kl(wanted, run(new, few))))
            losses.append(np.maximum.accumulate(found))
        measured = {
            "plain": plain,
            "repaired": plain._replace(losses=tuple(losses)),
        }
        for budget in (*BUDGETS, 0.09):
            for kind, one in measured.items():
                fitted = search.fit(one, {"multiply_adds": budget})
                new = repair(
                    fitted.sparsity, allocation=allocations.fitted(fitted)
                ).params
                cells.setdefault((kind, budget), []).append(
                    accuracy(net, new, data)
                )
    print("\ncurves of the mlp, accuracy after one_shot")
    for (kind, budget), found in sorted(cells.items(), reverse=True):
        print(f"{kind:10}{budget:7.1%}{mean(found):>16}", flush=True)


def main() -> None:
    """Trains, and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=os.environ.get("MNIST"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--networks", nargs="+", default=["mlp", "cnn", "res"], choices=NETWORKS
    )
    kinds = ["repaired", "distilled"]
    parser.add_argument("--kinds", nargs="+", default=kinds, choices=kinds)
    parser.add_argument("--only", choices=("promises", "rules", "repaired"))
    args = parser.parse_args()
    data = load(args.data)
    for name in args.networks:
        module, nets, seconds = NETWORKS[name], [], []
        for seed in range(args.seeds):
            fresh = module.init(jax.random.key(seed), jnp.zeros((1, 784)))
            start = time.process_time()
            steps = EPOCHS[name] * len(data.y) // BATCH
            variables = fit(module, fresh, data, steps, 2e-3, seed)
            seconds.append(time.process_time() - start)
            nets.append(Net(module, variables))
        if name in ("mlp", "lenet5") and args.only in (None, "promises"):
            promises(name, nets, seconds, data, args.kinds)
        if name == "mlp" and args.only == "repaired":
            repaired_curves(nets, data)
        if args.only in (None, "rules"):
            rules(name, nets, data)


if __name__ == "__main__":
    main()
