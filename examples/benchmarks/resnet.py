"""A residual network with BatchNorm on MNIST, at half and a quarter.

    python examples/benchmarks/resnet.py --data mnist.npz

The network has a convolution of stride 2 and three blocks of 32, 64 and 128
channels, and learns by Adam for two epochs. Then, for each share of the
multiply-adds that may be left:

1. `search.sensitivity` measures, on 512 training images, what each group of
   channels is worth; those that are added up by the shortcuts are one group.
   `search.fit` says how many stay, in multiples of 8.
2. `one_shot` prunes the dense network with 1,024 images and repairs it, and
   `compact` cuts it, BatchNorm with it.
3. `distill` trains what is left for one epoch to give the logits of the dense
   network. No labels are used after the first training.

Errors are in percent, of the 10,000 test images, which no choice was made on:
means over the seeds with standard errors. "worst" is that of the worst of the
ten classes, "noisy" with Gaussian noise on the pixels, of a standard deviation
of .2 where pixels go from 0 to 1. "batch 1" and so on say how many times as
fast as the dense network it is, medians of interleaved calls. `--data` is as in
`shrinking.py`.
"""

import argparse
import os
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from lenet import errors, pixels
from served import SERVED, faster, mean
from shrinking import load
from tqdm import tqdm

import jprune
from jprune import allocations, search

BATCH = 128
RATE = 2e-3


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    channels: int
    stride: int
    train: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps ``[n, height, width, in]`` to ``[..., channels]``."""
        norm = nn.BatchNorm
        strides = (self.stride, self.stride)
        y = nn.Conv(self.channels, (3, 3), strides, use_bias=False)(x)
        y = nn.relu(norm(not self.train)(y))
        y = nn.Conv(self.channels, (3, 3), use_bias=False)(y)
        y = norm(not self.train)(y)
        if x.shape != y.shape:
            x = nn.Conv(self.channels, (1, 1), strides, use_bias=False)(x)
            x = norm(not self.train)(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """A convolution of stride 2, three blocks, a mean and a dense layer."""

    channels: tuple[int, ...] = (32, 64, 128)

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Maps images ``[n, 784]`` to logits ``[n, 10]``."""
        x = x.reshape(-1, 28, 28, 1)
        x = nn.Conv(self.channels[0], (3, 3), (2, 2), use_bias=False)(x)
        x = nn.relu(nn.BatchNorm(not train)(x))
        for i, channels in enumerate(self.channels):
            x = Block(channels, 2 if i else 1, train)(x)
        return nn.Dense(10)(x.mean((1, 2)))


def train(module: nn.Module, x: Any, y: Any, epochs: int, seed: int) -> Any:
    """Trained variables, statistics of BatchNorm among them."""
    variables = module.init(jax.random.key(seed), jnp.zeros((1, 784)))
    steps = epochs * len(y) // BATCH
    tx = optax.adam(optax.cosine_decay_schedule(RATE, steps))

    @jax.jit
    def step(variables: Any, state: Any, x: Any, y: Any) -> Any:
        def loss(params: Any) -> Any:
            logits, rest = module.apply(
                {**variables, "params": params},
                x.astype(jnp.float32) / 255,
                train=True,
                mutable=["batch_stats"],
            )
            found = optax.softmax_cross_entropy_with_integer_labels(logits, y)
            return found.mean(), rest

        params = variables["params"]
        grads, rest = jax.grad(loss, has_aux=True)(params)
        updates, state = tx.update(grads, state, params)
        return {"params": optax.apply_updates(params, updates), **rest}, state

    state = tx.init(variables["params"])
    for number in tqdm(range(steps), f"seed {seed}", leave=False):
        rng = np.random.default_rng((seed, number))
        rows = rng.integers(len(y), size=BATCH)
        variables, state = step(variables, state, x[rows], y[rows])
    return variables


def pruned(fn: Any, variables: Any, images: Any, left: float) -> Any:
    """Variables and masks: searched, chosen and repaired."""
    graph = jprune.trace_units(fn, variables, images[:2])
    structure = jprune.units(graph, round_to=8)
    curves = search.sensitivity(
        fn, variables, [images[:512]], structure=structure, levels=8
    )
    fit = search.fit(curves, {"multiply_adds": left})
    return jprune.one_shot(
        fn,
        variables,
        [images[:512], images[512:1024]],
        fit.sparsity,
        structure=structure,
        allocation=allocations.fitted(fit),
    )


def channels(variables: Any) -> str:
    """Of each convolution, in the order of their names."""
    found = jax.tree.leaves_with_path(variables["params"])
    return " ".join(str(w.shape[-1]) for _, w in found if w.ndim == 4)


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--data", default=os.environ.get("MNIST"), help="mnist.npz")
    add("--left", type=float, nargs="+", default=[0.5, 0.25])
    add("--epochs", type=int, default=2, help="of the dense network")
    add("--steps", type=int, default=468, help="of distillation")
    add("--seeds", type=int, default=3)
    args = parser.parse_args(argv)
    begin, busy = time.perf_counter(), time.process_time()
    data = load(args.data)
    x, y = np.asarray(data.x), np.asarray(data.y)
    module = ResNet()

    def fn(variables: Any, x: Any) -> Any:
        return module.apply(variables, x)

    def judge(model: Any) -> Any:
        x, y = np.asarray(data.x_test), np.asarray(data.y_test)
        return errors(*model, x, y)

    rows: dict[str, list[Any]] = {"dense": []}
    fast: dict[str, list[Any]] = {}
    notes = []
    for seed in range(args.seeds):
        start = time.process_time()
        variables = train(module, x, y, args.epochs, seed)
        notes.append(f"seed {seed}: dense, {channels(variables)} channels")
        notes[-1] += f", {time.process_time() - start:.0f} s of processors"
        dense = fn, variables
        rows["dense"].append(judge(dense))
        rng = np.random.default_rng(seed)
        images = pixels(x[rng.permutation(len(x))])
        for left in args.left:
            start = time.process_time()
            result = pruned(fn, variables, images, left)
            small = jprune.compact(
                fn, result.params, images[:2], masks=result.masks
            )
            repaired = time.process_time() - start
            name = f"{left:.0%}, repaired"
            rows.setdefault(name, []).append(judge((small.fn, small.params)))
            start = time.process_time()
            batches = [
                (images[i : i + BATCH],)
                for i in range(0, len(images) - BATCH + 1, BATCH)
            ]
            schedule = optax.cosine_decay_schedule(RATE / 2, args.steps)
            finetune = jprune.distill(
                fn, variables, batches, optax.adam(schedule), args.steps
            )
            final = small.fn, finetune(small.fn, small.params, None)
            name = f"{left:.0%}, distilled"
            rows.setdefault(name, []).append(judge(final))
            ratios = faster(dense, final, images, rounds=30)
            fast.setdefault(name, []).append(ratios)
            cost = jprune.report.cost(
                fn, result.params, images[:1], masks=result.masks
            )
            share = cost.compact.multiply_adds / cost.dense.multiply_adds
            size = cost.compact.parameters / cost.dense.parameters
            notes.append(
                f"seed {seed}: {share:.1%} of the multiply-adds, {size:.1%} of "
                f"the parameters, {channels(small.params)} channels; "
                f"{repaired:.0f} s to search, prune and repair, "
                f"{time.process_time() - start:.0f} s to distil"
            )
    heads = ("error", "worst", "noisy", *(f"batch {n}" for n in SERVED))
    print(f"{'':16}" + "".join(f"{head:>15}" for head in heads))
    for name, found in rows.items():
        columns = [*zip(*found, strict=True)]
        columns += [*zip(*fast.get(name, []), strict=True)]
        print(f"{name:16}" + "".join(f"{mean(c):>15}" for c in columns))
    print()
    print(*notes, sep="\n")
    print(
        f"\n{args.seeds} seeds, {time.perf_counter() - begin:.0f} s, "
        f"{time.process_time() - busy:.0f} s of processors; "
        f"jax {jax.__version__}, {jax.devices()[0].platform}"
    )


if __name__ == "__main__":
    main()
