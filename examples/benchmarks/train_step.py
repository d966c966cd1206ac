"""Times a jitted training step with pruning against the bare step.

AdamW, donated parameters and state, cross-entropy of a 784-1024-1024-10 network
at two batch sizes, and a tree of 500 small kernels without a network. Variants
take turns; the ratio is the median of those of each turn. Then what tracing and
compiling `jit(tx.update)` takes for trees of many leaves, in CPU seconds, which
other processes disturb least, and the first `find_masks` of a process.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import jprune
from jprune.models import MLP

MODEL = MLP((1024, 1024, 10))
Step = Callable[..., Any]


def variants(params: Any) -> dict[str, optax.GradientTransformation]:
    """What is timed, by name; the first is the measure of the others."""
    adamw = optax.adamw(1e-3)
    masks = jprune.find_masks(params, 0.8)
    ramp = optax.linear_schedule(0.5, 0.9, 10_000)  # new counts at any step
    ball = jprune.project_frobenius_ball(20.0)
    return {
        "bare": adamw,
        "keep_masks": optax.chain(adamw, jprune.keep_masks(masks)),
        # Its first step, which warms up, refreshes; the others do not.
        "prune, between": optax.chain(adamw, jprune.prune(ramp, every=10**6)),
        "prune, refresh": optax.chain(adamw, jprune.prune(ramp)),
        "project_frobenius_ball": optax.chain(adamw, ball),
    }


def network_loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    logits = MODEL.apply(params, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def tree_loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    del x, y  # the gradient is all that matters
    return optax.tree.norm(params, squared=True) / 2


class Compiled(NamedTuple):
    """A step, what it cost to make, and where it starts."""

    step: Step
    seconds: float  # to trace and compile
    carry: Any  # parameters and state, replaced at each call
    size: int  # bytes of the state


def compile_step(tx: Any, loss: Any, params: Any, batch: Any) -> Compiled:
    """Traces and compiles from nothing."""
    params = jax.tree.map(jnp.copy, params)  # for donation
    state = tx.init(params)
    jax.block_until_ready(state)

    def step(params: Any, state: Any, x: jax.Array, y: jax.Array) -> Any:
        grads = jax.grad(loss)(params, x, y)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    jax.clear_caches()
    begin = time.perf_counter()
    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, *batch)
    compiled = lowered.compile()
    seconds = time.perf_counter() - begin
    size = sum(x.nbytes for x in jax.tree.leaves(state))
    return Compiled(compiled, seconds, [params, state], size)


def time_steps(
    made: dict[str, Compiled], batch: Any, rounds: int, steps: int
) -> dict[str, np.ndarray]:
    """Seconds per step, by variant and round."""
    times: dict[str, list[float]] = {name: [] for name in made}
    for turn in range(rounds + 1):
        for name, (step, _, carry, _) in made.items():
            begin = time.perf_counter()
            for _ in range(steps):
                carry[:] = step(*carry, *batch)
            jax.block_until_ready(carry)
            if turn:  # the first one warms up
                times[name].append((time.perf_counter() - begin) / steps)
    return {name: np.array(t) for name, t in times.items()}


def report(case: str, loss: Any, params: Any, batch: Any, args: Any) -> None:
    """A line of the table for each variant."""
    bar = tqdm(variants(params).items(), desc=f"{case}: compiling")
    made = {n: compile_step(tx, loss, params, batch) for n, tx in bar}
    times = time_steps(made, batch, args.rounds, args.steps)
    weights = optax.tree.size(params)
    for name, found in made.items():
        ratio = np.median(times[name] / times["bare"])
        more = (found.size - made["bare"].size) / weights
        print(
            f"| {case} | {name} | {1e3 * np.median(times[name]):.2f} "
            f"| {ratio:.2f} | {found.seconds:.2f} | {found.size:,} "
            f"| {more:.2f} |",
            flush=True,
        )


def transformer(width: int = 512, layers: int = 12) -> Any:
    """Shapes of 146 leaves and 53 million weights."""
    tree: dict[str, Any] = {"final_norm": {"scale": (width,)}}
    tree["embed"] = {"embedding": (30_000, width)}
    into, out = (width, width // 64, 64), (width // 64, 64, width)
    norm = {"scale": (width,), "bias": (width,)}
    for i in range(layers):
        tree[f"layer_{i:02}"] = {
            "norm_1": norm,
            "query": {"kernel": into},
            "key": {"kernel": into},
            "value": {"kernel": into},
            "out": {"kernel": out},
            "norm_2": norm,
            "up": {"kernel": (width, 4 * width), "bias": (4 * width,)},
            "down": {"kernel": (4 * width, width), "bias": (width,)},
        }
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, np.float32),
        tree,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def report_compilation(case: str, params: Any) -> None:
    """A line for each optimizer, in CPU seconds."""
    adamw = optax.adamw(1e-3)
    ramp = optax.linear_schedule(0.5, 0.9, 10_000)
    ranking = jprune.allocations.global_ranking()
    ranked = jprune.prune(ramp, every=100, allocation=ranking)
    made = {
        "adamw": adamw,
        "prune": optax.chain(adamw, jprune.prune(ramp, every=100)),
        "prune, one ranking": optax.chain(adamw, ranked),
        "rigl": jprune.rigl(adamw, 0.8, stop=10**5),
    }
    base = 0.0
    for name, tx in made.items():
        state = jax.eval_shape(tx.init, params)
        jax.clear_caches()
        begin = time.process_time()
        compiled = jax.jit(tx.update).lower(params, state, params).compile()
        seconds = time.process_time() - begin
        base = base or seconds
        memory = compiled.memory_analysis().temp_size_in_bytes
        print(
            f"| {case} | {name} | {seconds:.2f} | {seconds / base:.1f} "
            f"| {memory / 1e6:.2f} |",
            flush=True,
        )


COLD = """
import time, jax, jax.numpy as jnp, jprune
jax.config.update("jax_enable_compilation_cache", False)
n = {width}
params = [jnp.ones((2 * m, m)) for m in (4 * n, 2 * n, n)]
jax.block_until_ready(params)
begin = time.process_time()
jax.block_until_ready(jprune.find_masks(params, 0.5))
print(time.process_time() - begin)
"""


def report_cold() -> None:
    """The first call in a process, for few weights and for more."""
    for width in (4, 6, 8, 64):
        command = [sys.executable, "-c", COLD.format(width=width)]
        took = [float(subprocess.check_output(command)) for _ in range(5)]
        print(f"| {42 * width**2} | {np.median(took):.2f} |", flush=True)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--rounds", type=int, default=15, help="turns of all variants (15)")
    add("--steps", type=int, default=20, help="steps in a turn (20)")
    add("--leaves", type=int, default=500, help="of the wide tree (500)")
    add("--width", type=int, default=64, help="of its square kernels (64)")
    add("--layers", type=int, default=12, help="of the transformer (12)")
    args = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    print(
        f"{os.cpu_count()} cores, jax {jax.__version__}, {jax.devices()[0]}\n"
    )
    print(
        "| case | step | ms | x bare | trace + compile, s | state, bytes "
        "| more per weight |\n|---|---|---|---|---|---|---|"
    )
    rng = np.random.default_rng(0)
    for size in (32, 256):
        x = jnp.asarray(rng.standard_normal((size, 784), np.float32))
        y = jnp.asarray(rng.integers(10, size=size))
        params = MODEL.init(jax.random.key(0), x)
        report(f"batch {size}", network_loss, params, (x, y), args)
    shape = (args.leaves, args.width, args.width)
    kernels = jnp.asarray(rng.standard_normal(shape, np.float32))
    tree = {f"kernel_{i:03}": kernel for i, kernel in enumerate(kernels)}
    report(f"{args.leaves} leaves", tree_loss, tree, (x, y), args)
    print(
        "\n| tree | update of | trace + compile, CPU s | x adamw "
        "| temporary memory, MB |\n|---|---|---|---|---|"
    )
    shapes = transformer(layers=args.layers)
    weights = sum(x.size for x in jax.tree.leaves(shapes)) / 1e6
    leaves = len(jax.tree.leaves(shapes))
    report_compilation(f"{leaves} leaves, {weights:.0f}M weights", shapes)
    report_compilation(f"{args.leaves} leaves", jax.eval_shape(lambda: tree))
    print("\n| weights in three leaves | first find_masks, CPU s |\n|---|---|")
    report_cold()


if __name__ == "__main__":
    main()
