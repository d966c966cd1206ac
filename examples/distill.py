"""Distillation and pruning: does a dense teacher help a sparse student?

Trains a dense teacher on handwritten digits, then two students that end with
98 % of their weights at zero: one learns from labels, one also from the
teacher's probabilities. Prints whether that helped, over paired seeds. Learning
rates are those of digits_sparse_training.py:

    python examples/distill.py
"""

import argparse
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from digits_sparse_training import (
    BATCH,
    ERK,
    MODEL,
    Data,
    accuracy,
    chosen_rate,
    load_data,
    mean_and_error,
    support,
)

import jprune

Params = Any  # a pytree


def loss_of_labels(logits: jax.Array, y: jax.Array) -> jax.Array:
    return optax.losses.softmax_cross_entropy_with_integer_labels(
        logits, y
    ).mean()


def loss_of_teacher(
    logits: jax.Array, teacher: jax.Array, temperature: float
) -> jax.Array:
    """Hinton et al., 2015, section 2: gradients of size 1 / T^2 made good."""
    targets = jax.nn.softmax(teacher / temperature)
    predictions = jax.nn.log_softmax(logits / temperature)
    divergence = optax.losses.kl_divergence(predictions, targets)
    return temperature**2 * divergence.mean()


class Run(NamedTuple):
    """The end of a training."""

    params: Params
    accuracy: jax.Array
    kept: jax.Array  # kernel entries that are not 0


@functools.partial(jax.jit, static_argnames=("args", "sparse"))
@functools.partial(jax.vmap, in_axes=(0, 0, None, None, None, None))
def train(
    key: jax.Array,
    teacher: Params,
    weight: Any,
    data: Data,
    args: Any,
    sparse: bool,
) -> Run:
    """Learns from the teacher by ``weight``, from labels by the rest."""
    first, order = jax.random.split(key)
    params = MODEL.init(first, data.x[:1])
    name, level = ("gradual", args.sparsity) if sparse else ("dense", 0.0)
    rate = chosen_rate(name, level)
    tx: Any = optax.adam(optax.cosine_decay_schedule(rate, args.steps))
    if sparse:
        begin, length = args.steps // 10, args.steps * 2 // 3 - args.steps // 10
        ramp = optax.polynomial_schedule(0.0, args.sparsity, 3, length, begin)
        every = max(args.steps // 100, 1)
        tx = optax.chain(tx, jprune.prune(ramp, allocation=ERK, every=every))

    def step(carry: Any, i: Any) -> tuple[Any, None]:
        params, state = carry
        batch = jax.random.randint(
            jax.random.fold_in(order, i), (BATCH,), 0, len(data.x)
        )
        x, y = data.x[batch], data.y[batch]

        def loss(p: Params) -> jax.Array:
            logits, taught = MODEL.apply(p, x), MODEL.apply(teacher, x)
            soft = loss_of_teacher(logits, taught, args.temperature)
            return weight * soft + (1 - weight) * loss_of_labels(logits, y)

        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(
        step, (params, tx.init(params)), jnp.arange(args.steps)
    )
    return Run(params, accuracy(params, data), jnp.sum(support(params)))


def conclude(gain: float, error: float) -> str:
    """What the paired differences say, whatever they say."""
    if abs(gain) <= 2 * error:
        return (
            f"No effect is seen: {gain:+.2f} ± {error:.2f} points are within "
            "two standard errors of 0."
        )
    verb = "helped" if gain > 0 else "did harm"
    return f"Distillation {verb}: {gain:+.2f} ± {error:.2f} points."


class Args(NamedTuple):
    """What a program is compiled for."""

    steps: int
    sparsity: float
    temperature: float


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--steps", type=int, default=3000, help="per training")
    add(
        "--seeds", type=int, default=10, help="teachers, each with two students"
    )
    add("--sparsity", type=float, default=0.98, help="of the students")
    add("--temperature", type=float, default=4.0, help="of the distillation")
    add("--weight", type=float, default=0.9, help="of the teacher's loss")
    add("--quick", action="store_true", help="40 steps, 2 seeds")
    flags = parser.parse_args(argv)
    if flags.quick:
        flags.steps, flags.seeds = 40, 2
    if flags.steps < 20 or flags.seeds < 1:
        parser.error("--steps must be at least 20, --seeds at least 1")
    if not (0 <= flags.sparsity < 1 and 0 <= flags.weight <= 1):
        parser.error("--sparsity must lie in [0, 1), --weight in [0, 1]")
    if not flags.temperature > 0:
        parser.error(f"--temperature must be positive, got {flags.temperature}")

    data = load_data()
    args = Args(flags.steps, flags.sparsity, flags.temperature)
    keys = jax.random.split(jax.random.key(0), flags.seeds)
    pupils = jax.random.split(jax.random.key(1), flags.seeds)
    nobody = jax.vmap(lambda key: MODEL.init(key, data.x[:1]))(keys)

    teacher = train(keys, nobody, 0.0, data, args, False)
    # The same seeds and batches: only the weight of the teacher differs.
    alone = train(pupils, teacher.params, 0.0, data, args, True)
    taught = train(pupils, teacher.params, flags.weight, data, args, True)

    print(f"Test accuracy on Digits in %, {flags.seeds} seeds.\n")
    rows = {
        "dense teacher": teacher,
        f"{100 * flags.sparsity:g} % sparse, labels only": alone,
        f"{100 * flags.sparsity:g} % sparse, distilled": taught,
    }
    print("| network | kept weights | accuracy |\n|---|---|---|")
    for name, run in rows.items():
        mean, error = mean_and_error(run.accuracy)
        print(f"| {name} | {int(run.kept[0]):,} | {mean:.2f} ± {error:.2f} |")
    print()
    print(conclude(*mean_and_error(taught.accuracy - alone.accuracy)))


if __name__ == "__main__":
    main()
