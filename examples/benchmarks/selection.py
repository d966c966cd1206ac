"""Times exact selection against sorting, side by side.

Every method finds what is needed to keep the k largest of n scores;
`top_k_mask` and `partition + mask` also return the mask. A read pass is the
time of `jnp.sum`. Sorts take the same time for any scores and k, and are timed
for one of each. Then what does not depend on the machine: how often
`top_k_mask` reads the scores.
"""

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jprune
from jprune.selection import threshold as _threshold

KINDS = ("normal", "heavy", "zeros")
COUNTERS = ("count_at_most", "count_divided")


def scores(kind: str, size: int) -> jax.Array:
    """Magnitudes: normal, heavy-tailed, or trained with 60 % exact zeros."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((size // 1000, 1000), np.float32)
    if kind == "heavy":
        x = x**5
    elif kind == "zeros":
        x[rng.random(x.shape, np.float32) < 0.6] = 0
    return jnp.abs(jnp.asarray(x))


def partition_mask(flat: np.ndarray, k: int) -> np.ndarray:
    """The mask that `top_k_mask` finds, by NumPy."""
    least = np.partition(flat, flat.size - k)[flat.size - k]
    mask = flat >= least
    more = np.count_nonzero(mask) - k
    if more:  # of equals the last go
        mask[np.flatnonzero(flat == least)[-more:]] = False
    return mask


def watched(run: Callable[[], Any]) -> tuple[int, ...]:
    """How often each of `COUNTERS` is run by what ``run`` compiles."""
    seen = []
    kernels = {n: getattr(_threshold, n) for n in COUNTERS}

    def watch(name: str) -> Callable[..., jax.Array]:
        def count(*args: Any) -> jax.Array:
            jax.debug.callback(lambda: seen.append(name))
            return kernels[name](*args)

        return count

    jax.clear_caches()
    for name in COUNTERS:
        setattr(_threshold, name, watch(name))
    try:
        jax.block_until_ready(run())
        jax.effects_barrier()
    finally:
        for name in COUNTERS:
            setattr(_threshold, name, kernels[name])
        jax.clear_caches()
    return tuple(seen.count(name) for name in COUNTERS)


def reads(x: jax.Array, k: int) -> tuple[int, ...]:
    """How often `top_k_mask` counts scores, and then places of equals."""
    return watched(lambda: jprune.selection.top_k_mask(x, k))


def vectors() -> str:
    """Whether NumPy's partition can use AVX-512, as far as Linux says."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return "with" if "avx512f" in file.read() else "without"
    except OSError:
        return "perhaps with"


def methods(x: jax.Array, k: int, sorts: bool) -> dict[str, Callable[[], Any]]:
    """What is timed, by name."""
    flat = np.asarray(x).ravel()
    select = jax.jit(jprune.selection.top_k_mask)
    total = jax.jit(jnp.sum)
    found = {
        "read pass": lambda: total(x),
        "top_k_mask": lambda: select(x, k),
        "numpy.partition": lambda: np.partition(flat, flat.size - k),
        "partition + mask": lambda: partition_mask(flat, k),
    }
    if sorts:
        argsort = jax.jit(lambda x: jnp.argsort(x.ravel(), descending=True))
        sort = jax.jit(lambda x: jnp.sort(x.ravel()))
        top_k = jax.jit(lambda x: jax.lax.top_k(x.ravel(), k)[0][-1])
        quantile = jax.jit(lambda x: jnp.quantile(x, 1 - k / x.size))
        found |= {
            "jnp.argsort": lambda: argsort(x),
            "jnp.sort": lambda: sort(x),
            "lax.top_k": lambda: top_k(x),
            "jnp.quantile": lambda: quantile(x),
        }
    try:
        import torch
    except ImportError:
        return found
    tensor = torch.from_numpy(flat)
    rank = flat.size - k + 1
    return found | {"torch.kthvalue": lambda: torch.kthvalue(tensor, rank)}


def medians(
    calls: dict[str, Callable[[], Any]], rounds: int
) -> dict[str, float]:
    """Seconds per call, the methods taking turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            if times[name] and times[name][0] > 1:
                continue  # what takes seconds is timed once
            begin = time.perf_counter()
            jax.block_until_ready(call())
            seconds = time.perf_counter() - begin
            if turn or seconds > 5:  # the first call compiles
                times[name].append(seconds)
    return {name: float(np.median(t)) for name, t in times.items()}


def plot(rows: list[tuple[Any, ...]], path: str) -> None:
    """Time against the number of scores, one panel for each kind."""
    from matplotlib.figure import Figure

    figure = Figure((11, 4), layout="constrained")
    axes = figure.subplots(1, len(KINDS), sharey=True)
    names = dict.fromkeys(row[3] for row in rows)
    colors = {name: f"C{i}" for i, name in enumerate(names)}
    for ax, kind in zip(axes, KINDS, strict=True):
        lines: dict[str, list[tuple[float, float]]] = {}
        for size, of, sparsity, name, ms, _ in rows:
            if of == kind and sparsity == 0.9:
                lines.setdefault(name, []).append((size, ms))
        for name, points in lines.items():
            ax.loglog(
                *zip(*points, strict=True), ".-", color=colors[name], label=name
            )
        ax.set(title=f"{kind}, 90 % lost", xlabel="scores")
    axes[0].set_ylabel("ms")
    lines, labels = axes[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=80)


def report_reads(rows: list[tuple[Any, ...]]) -> None:
    """What is read and compared, and the times beside NumPy's."""
    print(
        "\n| scores | kind | sparsity | passes: scores, equals, mask "
        "| bytes read per score | comparisons per score "
        "| x partition + mask |\n|---|---|---|---|---|---|---|"
    )
    ms = {row[:4]: row[4] for row in rows}
    for size, kind, sparsity in dict.fromkeys(row[:3] for row in rows):
        x = scores(kind, size)
        first, second = reads(x, size - round(sparsity * size))
        of = size, kind, sparsity
        ratio = ms[*of, "partition + mask"] / ms[*of, "top_k_mask"]
        print(
            f"| {size:.0e} | {kind} | {sparsity} | {first}, {second}, 1 "
            f"| {(first + second + 1) * x.itemsize} "
            f"| {7 * first + 9 * second + 3} | {ratio:.1f} |",
            flush=True,
        )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--sizes",
        type=float,
        nargs="+",
        default=[1e6, 1e7, 1e8],
        help="numbers of scores",
    )
    parser.add_argument(
        "--quick", action="store_true", help="one small size, three rounds"
    )
    parser.add_argument(
        "--no-sorts", action="store_true", help="leave out the slow methods"
    )
    parser.add_argument("--plot", metavar="FILE", help="save the plot")
    options = parser.parse_args()
    sizes = [1e6] if options.quick else options.sizes
    rounds = 3 if options.quick else 9
    device = jax.devices()[0]
    print(
        f"{os.cpu_count()} cores {vectors()} AVX-512, jax {jax.__version__}, "
        f"{device}\n"
    )
    print("| scores | kind | sparsity | method | ms | read passes | GB/s |")
    print("|---|---|---|---|---|---|---|")
    rows = []
    for size in map(int, sizes):
        for kind in KINDS:
            x = scores(kind, size)
            for sparsity in (0.5, 0.9, 0.99):
                k = size - round(sparsity * size)
                sorts = kind == "normal" and sparsity == 0.9
                calls = methods(x, k, sorts and not options.no_sorts)
                found = medians(calls, rounds)
                for name, t in found.items():
                    ratio = t / found["read pass"]
                    row = (size, kind, sparsity, name, t * 1e3, ratio)
                    rows.append(row)
                    print(
                        f"| {size:.0e} | {kind} | {sparsity} | {name} "
                        f"| {t * 1e3:.2f} | {ratio:.1f} "
                        f"| {x.nbytes / t / 1e9:.2f} |",
                        flush=True,
                    )
    report_reads(rows)
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
