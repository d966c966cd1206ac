"""What calibration costs beside a forward pass, and what a walk holds.

    python examples/benchmarks/calibration.py
    python examples/benchmarks/calibration.py --model MODEL_DIR --text lines.txt

For every model: multiply-adds of a forward pass and those that the statistics
add, as XLA counts them, and their ratio beside the theory, sum K^2 / sum K N
over distinct inputs of K numbers and kernels of K to N; bytes that each needs
beside its arguments. Then a stack of equal layers in a `lax.scan`: what
`one_shot` holds at most, in sizes of the batch and of one Gram, for more and
more layers. With `--model` (see `one_shot_models.py`) also the time of
SparseGPT on the 36 kernels of the encoder, in forward passes beside its solves;
CPU seconds, which others on the machine hardly change.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from one_shot_models import encoder, read_lines, sentences

import jprune
from jprune import solvers
from jprune.calibration.calibrate import Plan
from jprune.models import MLP


def normal(seed: int, *shape: int) -> jax.Array:
    """Random numbers as trained layers have them."""
    return jax.random.normal(jax.random.key(seed), shape) / shape[-2] ** 0.5


def perceptron(rows: int) -> tuple[Any, Any, tuple[Any, ...]]:
    model, x = MLP((300, 100, 10)), normal(0, rows, 784)
    return model.apply, model.init(jax.random.key(1), x[:1]), (x,)


def transformer(rows: int) -> tuple[Any, Any, tuple[Any, ...]]:
    """Four blocks in a scan; width 128, hidden 512, 32 tokens a row."""
    sizes = {
        **dict.fromkeys(("q", "k", "v", "o"), (128, 128)),
        **{"up": (128, 512), "down": (512, 128)},
    }
    params = {
        name: normal(i, 4, *size)
        for i, (name, size) in enumerate(sizes.items())
    }

    def block(x: jax.Array, p: Any) -> tuple[jax.Array, None]:
        q, k, v = (x @ p[name] for name in "qkv")
        weights = jax.nn.softmax(q @ jnp.swapaxes(k, 1, 2) / 128**0.5)
        x = x + weights @ v @ p["o"]
        return x + jax.nn.gelu(x @ p["up"]) @ p["down"], None

    def fn(params: Any, x: jax.Array) -> jax.Array:
        return lax.scan(block, x, params)[0]

    return fn, params, (normal(9, rows // 32, 32, 128),)


def theory(stats: Any) -> float:
    """Sum of M K^2 over distinct inputs by sum of M K N over products."""
    rows = [float(np.sum(x.count)) for x in stats.moments]
    gram = sum(
        m * x.gram.shape[-1] ** 2
        for m, x in zip(rows, stats.moments, strict=True)
    )
    products = 0.0
    for site in stats.sites:
        leaf = jax.ShapeDtypeStruct(shapes[site.path], np.float32)
        *_, many, outs = jax.eval_shape(site.matrix, leaf).shape
        products += rows[site.moments] * many * outs
    return gram / products


shapes: dict[str, tuple[int, ...]] = {}


def compiled(function: Any, *args: Any) -> tuple[float, float]:
    """Multiply-adds, and bytes beside the arguments."""
    program = jax.jit(function).lower(*args).compile()
    cost, memory = program.cost_analysis(), program.memory_analysis()
    needs = memory.temp_size_in_bytes + memory.output_size_in_bytes
    return cost["flops"] / 2, needs


def costs(name: str, fn: Any, params: Any, args: tuple[Any, ...]) -> str:
    """A row of the table."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    shapes.clear()
    for path, x in leaves:
        key = jax.tree_util.keystr(path, simple=True, separator="/")
        shapes[key] = x.shape
    stats = jprune.calibrate(fn, params, [args])
    plan = Plan("calibrate", fn, params, None)
    forward, own = compiled(fn, params, *args)
    both, needs = compiled(plan.sums, params, args)
    return (
        f"{name:14}{forward / 1e6:>12.1f}{both / 1e6:>12.1f}"
        f"{both / forward - 1:>10.2f}{theory(stats):>10.2f}"
        f"{own / 2**20:>10.1f}{needs / 2**20:>10.1f}"
    )


def held(layers: int, width: int, rows: int) -> float:
    """MB that are alive at most in solvers, without the parameters."""
    params = {"w": normal(0, layers, width, width)}
    x = normal(1, rows, width)
    before = alive()
    most = [0]
    solver = solvers.sparsegpt()

    def solve(problem: Any, choose: Any) -> Any:
        found = jax.block_until_ready(solver.solve(problem, choose))
        most[0] = max(most[0], alive() - before)
        return found

    def fn(params: Any, x: jax.Array) -> jax.Array:
        return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params["w"])[0]

    jprune.one_shot(fn, params, [x], 0.5, solver=solver._replace(solve=solve))
    return most[0] / 2**20


def alive() -> int:
    """Bytes of all arrays."""
    return sum(x.nbytes for x in jax.live_arrays())


def timed(run: Callable[[], Any], repeats: int) -> float:
    """The median of some runs, in CPU seconds, after a first."""
    times = []
    for _ in range(repeats + 1):
        start = time.process_time()
        jax.block_until_ready(run())
        times.append(time.process_time() - start)
    return float(np.median(times[1:]))


def encoder_times(args: argparse.Namespace) -> list[str]:
    """SparseGPT of the encoder's kernels, in forward passes and solves."""
    model = encoder(args.model)
    lines = read_lines(args.text)[: args.sentences]
    batch = sentences(args.model, lines, 32)
    solver, spent = solvers.sparsegpt(), [0.0, 0]

    def solve(problem: Any, choose: Any) -> Any:
        jax.block_until_ready(problem)
        start = time.process_time()
        found = jax.block_until_ready(solver.solve(problem, choose))
        spent[0] += time.process_time() - start
        spent[1] += 1
        return found

    def run() -> Any:
        spent[:] = [0.0, 0]
        how = solver._replace(solve=solve)
        return jprune.one_shot(
            *model, [batch], 0.5, solver=how, where="kernel"
        ).params

    forward = jax.jit(model.fn)
    one = timed(lambda: forward(model.params, *batch), 3)
    whole = timed(run, 1)
    rest = (whole - spent[0]) / one
    return [
        f"SparseGPT, {spent[1]} kernels, {len(lines)} sentences: "
        f"{whole:.1f} CPU s",
        f"a forward pass {one:.2f} s, solves {spent[0]:.1f} s; "
        f"all else {rest:.1f} forward passes",
    ]


def main(argv: list[str] | None = None) -> list[str]:
    """Prints the tables; returns their lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", nargs="*", type=int, default=[2, 4, 8, 16])
    parser.add_argument("--model", help="the encoder's folder")
    parser.add_argument("--text", help="sentences, one a line")
    parser.add_argument("--sentences", type=int, default=256)
    args = parser.parse_args(argv)
    heads = ("forward", "with Grams", "extra", "theory", "MB", "with Grams")
    widths = (12, 12, 10, 10, 10, 12)
    pairs = zip(heads, widths, strict=True)
    lines = [f"{'10^6 mult-adds':14}" + "".join(f"{h:>{w}}" for h, w in pairs)]
    for name, make in {"MLP": perceptron, "transformer": transformer}.items():
        lines.append(costs(name, *make(args.rows)))
    one = (args.rows + args.width) * args.width * 4 / 2**20
    lines += [
        "",
        f"one_shot of a scan: a batch and a Gram are {one:.1f} MB",
        f"{'layers':14}{'weights, MB':>14}{'held beside, MB':>18}",
    ]
    for layers in args.layers:
        weights = layers * args.width**2 * 4 / 2**20
        most = held(layers, args.width, args.rows)
        lines.append(f"{layers:<14}{weights:>14.1f}{most:>18.1f}")
    if args.model and args.text:
        lines += ["", *encoder_times(args)]
    lines += ["", f"jax {jax.__version__}, {jax.devices()[0].platform}"]
    print(*lines, sep="\n")
    return lines


if __name__ == "__main__":
    main()
