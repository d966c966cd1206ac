"""What operations cost at scale: formulas, what is compiled, what was measured.

    python examples/benchmarks/cost_model.py --devices 256 --bandwidth 0.8e12

The formulas (`costs`) say for one of D devices how many bytes it reads and writes,
how many it receives from others, how many it holds beside the parameters, and how
many operations it does. Three tables come of them:

- beside what is compiled, for the trees of `scale.py` and for a transformer of the
  shapes of Llama 2 70B: operations are compiled for abstract arrays, and nothing is
  run. "bytes" are those of `cost_analysis` (of one pass of the search), "held" those
  of `memory_analysis`, "numbers" the entries of the largest exchange, "exchanges" how
  many the program has;
- beside what `scale.py` measured, as `docs/outputs` has it;
- in bytes and seconds, computed from bandwidths that you state. No such machine was
  at hand: they are no measurement.
"""

import argparse
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import scale
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jprune
from jprune import allocations

OUTPUTS = Path(__file__).parents[2] / "docs/outputs"
W, S = 2, 4  # bytes of a weight, and of its score
KEYS = 7  # thresholds that a pass of the search counts under
TOKENS = 2048
UNIFORM, RANKING = "find_masks, uniform", "find_masks, one ranking"
ERDOS_RENYI, UNITS = "find_masks, Erdos-Renyi", "find_masks, units"
REFRESH, BETWEEN = "prune, masks chosen", "keep_masks"
RIGL = "rigl, rewired"


class Size(NamedTuple):
    """What the formulas know of a tree."""

    devices: int
    weights: int  # of leaves that are pruned
    leaves: int
    of_units: int  # weights that belong to hidden units
    readers: int  # leaves that they are in
    units: int


class Cost(NamedTuple):
    """Of one device."""

    traffic: float  # bytes read or written
    received: float  # bytes from other devices
    held: float  # bytes beside the parameters, masks included
    operations: float
    numbers: int = 0  # entries of the largest exchange
    exchanges: int = 0


def costs(size: Size, passes: int) -> dict[str, Cost]:
    """Of the operations that are single programs."""
    devices, n = size.devices, size.weights / size.devices
    # Scores are made and stored, each pass reads them, the mask is made of the
    # weights again. Of each leaf and each key a device hears all others' counts.
    found = Cost(
        traffic=(W + S + passes * S + W + 1) * n,
        received=4 * passes * KEYS * size.leaves * devices,
        held=(S + 1) * n,
        operations=2 * passes * KEYS * n,
        numbers=devices,
        exchanges=passes * KEYS * size.leaves,
    )
    mine = size.of_units / devices
    between = Cost(traffic=n, received=0, held=n, operations=n)
    # Masks are counted, read for the choice of candidates, written, and applied;
    # what is compared are the bits of the candidates' scores.
    refresh = found._replace(
        traffic=(1 + (W + 1 + S) + passes * S + (S + 1) + 1) * n,
        held=(S + 1) * n,
        exchanges=found.exchanges + size.leaves,
    )
    twice = refresh._replace(
        traffic=2 * refresh.traffic,
        received=2 * refresh.received,
        held=(S + 1 + 1 + W) * n,  # masks of before, and the gradient
        operations=2 * refresh.operations,
        exchanges=2 * refresh.exchanges,
    )
    return {
        UNIFORM: found,
        ERDOS_RENYI: found,
        RANKING: found,
        UNITS: Cost(
            traffic=(W + W + 1) * mine + passes * S * size.units,
            received=S * size.units * size.readers,
            held=mine + S * size.units,
            operations=2 * mine,
            numbers=size.units,
            exchanges=size.readers,
        ),
        REFRESH: refresh,
        BETWEEN: between,
        RIGL: twice,
    }


def grams(widths: dict[int, int], divided: int, devices: int) -> float:
    """Bytes of a device for Gram matrices: how many of each width there are.

    Those of inputs that are divided along their width, as `divided` is, are too.
    """
    return sum(
        4 * many * width**2 / (devices if width == divided else 1)
        for width, many in widths.items()
    )


# What is compiled.


def llama(mesh: Any, width: int = 8192, stacks: int = 10) -> Any:
    """Shapes of Llama 2 70B in bfloat16, its layers in stacks that scans read."""
    keys, hidden, words = width // 8, width * 7 // 2, 32000
    layers = scale.LAYERS // stacks

    def leaf(shape: tuple[int, ...], *spec: Any) -> Any:
        sharding = NamedSharding(mesh, P(*spec))
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding)

    def kernel(inputs: int, outputs: int, spec: tuple[Any, ...]) -> Any:
        return leaf((layers, inputs, outputs), None, *spec)

    def stack() -> Any:
        out, into = (None, "model"), ("model", None)
        return {
            "attention": {
                "q": kernel(width, width, out),
                "k": kernel(width, keys, out),
                "v": kernel(width, keys, out),
                "o": kernel(width, width, into),
            },
            "mlp": {
                "gate": kernel(width, hidden, out),
                "up": kernel(width, hidden, out),
                "down": kernel(hidden, width, into),
            },
            "norms": leaf((layers, 2, width)),
        }

    return {
        "embedding": leaf((words, width), None, "model"),
        "head": leaf((width, words), "model", None),
        "stacks": {f"{i}": stack() for i in range(stacks)},
    }


def llama_fn(params: Any, x: jax.Array) -> jax.Array:
    """What its stacks do to ``[batch, length, width]``, without the embedding."""

    def block(x: jax.Array, layer: Any) -> tuple[jax.Array, None]:
        y, mlp = x * layer["norms"][0], layer["mlp"]
        head = min(128, layer["attention"]["k"].shape[1])
        q, k, v = (
            (y @ layer["attention"][name]).reshape(*x.shape[:2], -1, head)
            for name in "qkv"
        )
        found = jax.nn.dot_product_attention(q, k, v).reshape(*x.shape[:2], -1)
        x = x + found @ layer["attention"]["o"]
        y = x * layer["norms"][1]
        y = jax.nn.silu(y @ mlp["gate"]) * (y @ mlp["up"])
        return x + y @ mlp["down"], None

    for stack in params["stacks"].values():
        x, _ = jax.lax.scan(block, x, stack)
    return x


def size_of(tree: Any, devices: int) -> Size:
    """The sizes of a tree whose kernels are called as here."""
    leaves = {
        jax.tree_util.keystr(path): x
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }
    chosen = [x for k, x in leaves.items() if re.search(scale.KERNELS, k)]
    belong = [x for k, x in leaves.items() if "mlp" in k]
    down = [x for k, x in leaves.items() if "down" in k]
    return Size(
        devices,
        sum(x.size for x in chosen),
        len(chosen),
        sum(x.size for x in belong),
        len(belong),
        sum(x.shape[0] * x.shape[1] for x in down),
    )


def divided_as(params: Any, state: Any) -> Any:
    """Abstract arrays of a state, each divided as its parameter is."""
    own = {
        jax.tree_util.keystr(path): x.sharding
        for path, x in jax.tree_util.tree_leaves_with_path(params)
    }
    mesh = next(iter(own.values())).mesh

    def leaf(path: Any, x: Any) -> Any:
        name = jax.tree_util.keystr(path)
        found = [s for end, s in own.items() if name.endswith(end)]
        sharding = found[0] if found else NamedSharding(mesh, P())
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(leaf, state)


def programs(fn: Any, tree: Any, width: int) -> dict[str, Callable[[], Any]]:
    """Each operation, compiled when it is called."""

    def masks(**how: Any) -> Any:
        find = jax.jit(lambda p: jprune.find_masks(p, 0.5, **how))
        return find.lower(tree).compile()

    def chosen(allocation: Any) -> Callable[[], Any]:
        return lambda: masks(allocation=allocation, where=scale.KERNELS)

    def of_units() -> Any:
        x = jax.ShapeDtypeStruct((1, 8, width), jnp.bfloat16)
        graph = jprune.trace_units(fn, tree, x)
        return masks(structure=jprune.units(graph, where=scale.UNITS))

    def step(make: Callable[[Any], Any]) -> Any:
        def run(params: Any, state: Any) -> Any:
            grads = jax.tree.map(lambda x: x * 0.5, params)
            updates, state = make(params).update(grads, state, params)
            return optax.apply_updates(params, updates), state

        state = jax.eval_shape(lambda params: make(params).init(params), tree)
        jitted = jax.jit(run, donate_argnums=(0, 1))
        return jitted.lower(tree, divided_as(tree, state)).compile()

    def positive(path: Any, x: Any) -> Any:
        chosen = re.search(scale.KERNELS, jax.tree_util.keystr(path))
        return x > 0 if chosen else None

    def kept(params: Any) -> Any:
        masks = jax.tree_util.tree_map_with_path(positive, params)
        return optax.chain(optax.sgd(0.1), jprune.keep_masks(masks))

    def pruned(params: Any) -> Any:
        del params
        rising = optax.linear_schedule(0.4, 0.6, 10)
        link = jprune.prune(rising, where=scale.KERNELS)
        return optax.chain(optax.sgd(0.1), link)

    def rewired(params: Any) -> Any:
        del params
        sgd = optax.sgd(0.1)
        return jprune.rigl(sgd, 0.5, where=scale.KERNELS, stop=1000)

    return {
        UNIFORM: chosen(allocations.uniform()),
        ERDOS_RENYI: chosen(allocations.erdos_renyi()),
        RANKING: chosen(allocations.global_ranking()),
        UNITS: of_units,
        REFRESH: lambda: step(pruned),
        BETWEEN: lambda: step(kept),
        RIGL: lambda: step(rewired),
    }


def compiled_cost(name: str, compiled: Any, size: Size) -> Cost:
    """What a compiled program says of itself; its loop counted as one pass."""
    memory, found = compiled.memory_analysis(), compiled.cost_analysis()
    text = compiled.as_text()
    if name in (REFRESH, BETWEEN, RIGL):  # masks are a part of the state
        held = memory.temp_size_in_bytes + size.weights / size.devices
    else:
        held = memory.temp_size_in_bytes + memory.output_size_in_bytes
    return Cost(
        found["bytes accessed"],
        0,
        held,
        found["flops"],
        scale.exchanged(text),
        len(re.findall(scale.COLLECTIVE, text)),
    )


def checked(fn: Any, tree: Any, width: int, devices: int) -> None:
    """The formulas beside what is compiled."""
    size = size_of(tree, devices)
    total = sum(x.size for x in jax.tree.leaves(tree))
    print(
        f"\n{total:,} parameters, bfloat16, on {devices} devices: "
        f"{size.weights:,} in {size.leaves} leaves are pruned, or "
        f"{size.units:,} units"
    )
    heads = ("bytes", "compiled", "held", "compiled", "numbers", "compiled")
    print(f"{'':27}" + "".join(f"{x:>10}" for x in (*heads, "seconds")))
    each = W * total / devices  # of the parameters, on one device
    for name, make in programs(fn, tree, width).items():
        model, start = costs(size, 1)[name], time.perf_counter()
        found = compiled_cost(name, make(), size)
        cells = (
            f"{model.traffic / each:.2f}",
            f"{found.traffic / each:.2f}",
            f"{model.held / each:.2f}",
            f"{found.held / each:.2f}",
            f"{model.numbers:,}",
            f"{found.numbers:,}",
            f"{time.perf_counter() - start:.0f}",
        )
        print(f"{name:27}" + "".join(f"{x:>10}" for x in cells), flush=True)
