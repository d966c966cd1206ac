"""Time and memory that tracing and compacting a large model take, on Linux.

A perceptron of a hundred million parameters loses half of its hidden units;
every layer has a mask of its full size. The peak is the process's, above what
it held with model and masks; the ideal is the result and the largest leaf.
"""

import argparse
import ctypes
import gc
import itertools
import re
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jprune


def fn(params: Any, x: jax.Array) -> jax.Array:
    """The perceptron."""
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["w"] + layer["b"])
    return x @ params[-1]["w"] + params[-1]["b"]


def memory(what: str) -> float:
    """MiB that are held (``VmRSS``) or were at most (``VmHWM``)."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(rf"{what}:\s+(\d+)", status)[0]) / 1024


def settle() -> float:
    """MiB that are held once what can be freed is; the peak starts here."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def main() -> None:
    """Prints times and peaks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--layers", type=int, default=7)
    options = parser.parse_args()
    sizes = [784, *[options.width] * options.layers, 10]
    shapes = list(itertools.pairwise(sizes))
    rng = np.random.default_rng(0)
    params, masks = [], []
    for n, m in shapes:
        w = rng.standard_normal((n, m), np.float32)
        alive = np.arange(m) % 2 == 0 if m == options.width else np.ones(m)
        params.append({"w": jnp.asarray(w), "b": jnp.ones(m)})
        row = jnp.asarray(alive, bool)
        masks.append({"w": jnp.tile(row, (n, 1)), "b": row})
    x = jax.ShapeDtypeStruct((1, 784), jnp.float32)
    jax.block_until_ready((params, masks))
    del w
    before = settle()
    begin = time.perf_counter()
    graph = jprune.trace_units(fn, params, x)
    traced, peak = time.perf_counter(), memory("VmHWM") - before
    units = sum(pool.units.size for pool in graph.pools)
    print(
        f"trace    {traced - begin:6.2f} s, peak {peak:6.0f} MiB, {units} units"
    )
    small = jprune.compact(fn, params, x, masks=masks)
    jax.block_until_ready(small.params)
    took, peak = time.perf_counter() - traced, memory("VmHWM") - before
    result, whole = jax.tree.leaves(small.params), jax.tree.leaves(params)
    size, most = sum(p.nbytes for p in result), max(p.nbytes for p in whole)
    print(f"compact  {took:6.2f} s, peak {peak:6.0f} MiB")
    count = sum(p.size for p in whole), sum(p.size for p in result)
    print("{:,} parameters, {:,} are left".format(*count))
    print(
        f"the result {size / 2**20:.0f} MiB, the largest leaf "
        f"{most / 2**20:.0f} MiB, together {(size + most) / 2**20:.0f} MiB"
    )


if __name__ == "__main__":
    main()
