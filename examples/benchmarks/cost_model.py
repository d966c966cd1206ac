"""What operations cost at scale: formulas, what is compiled, what was measured.

    python examples/benchmarks/cost_model.py --devices 256 --bandwidth 0.8e12

The formulas (`costs`, `calls`) say for one of several devices how many bytes it
reads and writes, how many it receives from others, how many it holds beside the
parameters, and how many operations it does. They are printed

- beside what is compiled, for the trees of `scale.py` and for a transformer
  with the shapes of Llama 2 70B. Operations are compiled for abstract arrays;
  nothing is run. "bytes" are those of `cost_analysis`, of one pass of the
  search and one turn of its loops, and of a training step those beyond a step
  of SGD alone. "held" is the output and the temporary memory of
  `memory_analysis`, and the masks in a state. "numbers" are the entries of the
  largest exchange;
- beside what `scale.py` measured, as `docs/outputs` has it. "passes" are
  counted, at the first size: those over scores, and those over the places of
  equals. "bytes" and "times" are in units of reading all parameters once;
- in bytes and seconds, for bandwidths that you state. No such machine was at
  hand: these are computed, and not measured.
"""

import argparse
import re
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import scale
import selection
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jprune
from jprune import allocations

OUTPUTS = Path(__file__).parents[2] / "docs/outputs"
W = 2  # bytes of a weight
S = 2  # of its score by `magnitude`, which is exact in 16 bits
F = 4  # of any other score, in float32
KEYS = 7  # thresholds that a pass of the search counts under
TOKENS = 2048
UNIFORM, RANKING = "find_masks, uniform", "find_masks, one ranking"
ERDOS_RENYI, UNITS = "find_masks, Erdos-Renyi", "find_masks, units"
REFRESH, BETWEEN = "prune, masks chosen", "keep_masks"
RIGL = "rigl, rewired"
ALONE = "SGD alone"
STEPS = REFRESH, BETWEEN, RIGL


class Size(NamedTuple):
    """What the formulas know of a tree."""

    devices: int
    weights: int  # of leaves that are pruned
    leaves: int
    of_units: int  # weights that belong to hidden units
    readers: int  # leaves that they are in
    units: int
    looped: bool  # whether leaves of a kind are read in turn, each copied first


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
    # weights again. Of each leaf and key a device hears all others' counts.
    found = Cost(
        traffic=(W + S + passes * S + W + 1) * n,
        received=4 * passes * KEYS * size.leaves * devices,
        held=(S + 1) * n,
        operations=2 * passes * KEYS * n,
        numbers=devices,
        exchanges=passes * KEYS * size.leaves,
    )
    copies = 2 * n if size.looped else 0
    ranked = found._replace(traffic=found.traffic + passes * S * copies)
    found = found._replace(traffic=found.traffic + S * copies)
    mine = size.of_units / devices
    between = Cost(traffic=n, received=0, held=n, operations=n)

    def chosen(s: int) -> float:
        # Masks are counted, read to choose candidates, written, and applied;
        # what is compared are the bits of the candidates' scores, which for
        # those of 16 bits are made of stored ones.
        marks, stored = 1 + 1 + 1 + 1, 2 * s if s == S else 0
        return (marks + W + s + stored + passes * s + s) * n + s * copies

    refresh = found._replace(
        traffic=chosen(S),
        held=(S + S + 1) * n,
        exchanges=found.exchanges + size.leaves,
    )
    # One choice by the weights, one by the gradient.
    twice = refresh._replace(
        traffic=chosen(S) + chosen(F),
        received=2 * refresh.received,
        held=(F + 1 + 1 + W) * n,  # masks of before, and the gradient
        operations=2 * refresh.operations,
        exchanges=2 * refresh.exchanges,
    )
    return {
        UNIFORM: found,
        ERDOS_RENYI: found,
        RANKING: ranked,
        UNITS: Cost(
            traffic=(W + W + 1) * mine + passes * F * size.units,
            received=F * size.units * size.readers,
            held=mine + F * size.units,
            operations=2 * mine,
            numbers=size.units,
            exchanges=size.readers,
        ),
        REFRESH: refresh,
        BETWEEN: between,
        RIGL: twice,
    }


class Kernel(NamedTuple):
    """A product of each layer."""

    inputs: int
    outputs: int
    divided: bool  # its inputs, along their width
    shares: bool = False  # the inputs of the one before


class Call(NamedTuple):
    """Of what is no single program."""

    held: float  # bytes of a device, beside the parameters
    operations: float  # of a device
    on_host: float = 0  # bytes


def calls(
    size: Size, total: int, kernels: Sequence[Kernel], rows: int
) -> dict[str, Call]:
    """Of the calls, half of weights or units pruned, with inputs of some rows.

    Gram matrices of inputs that every device has whole, every device has whole.
    """
    devices, layers = size.devices, scale.LAYERS
    own = [k for k in kernels if not k.shares]
    grams = [4 * k.inputs**2 / (devices if k.divided else 1) for k in own]
    forward = 2 * rows * total / devices
    sums = sum(rows / 2 * gram for gram in grams)
    # A Cholesky factor of the Gram and its inverse, on every device; the sweep.
    solved = sum(
        k.inputs**3 * 4 / 3 + 2 * k.inputs**2 * k.outputs for k in kernels
    )
    most = max(8 * k.inputs**2 + 8 * k.inputs * k.outputs for k in kernels)
    kept = W * size.weights / 2 + size.weights / 8
    return {
        "calibrate": Call(layers * sum(grams), forward + layers * sums),
        "one_shot, SparseGPT": Call(
            most, 2 * forward + layers * (sums + solved)
        ),
        # What was cut lies whole on every device.
        "compact, half of the units": Call(
            W * size.of_units / 2 + size.of_units / devices,
            0,
            W * total + size.of_units,
        ),
        # Kept values and bits, and the bytes of the file.
        "save_sparse": Call(
            size.weights / devices, 0, W * total + size.weights + 2 * kept
        ),
    }


# What is compiled.


def llama(mesh: Any, width: int = 8192, stacks: int = 10) -> Any:
    """Shapes of Llama 2 70B, bfloat16, its layers in stacks for scans."""
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
    """Its layers, ``[batch, length, width]`` to the same."""

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
        len(down) > 1,
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
        ALONE: lambda: step(lambda params: optax.sgd(0.1)),
        REFRESH: lambda: step(pruned),
        BETWEEN: lambda: step(kept),
        RIGL: lambda: step(rewired),
    }


def compiled_cost(name: str, compiled: Any, size: Size) -> Cost:
    """What a compiled program says of itself; its loop counted as one pass."""
    memory, found = compiled.memory_analysis(), compiled.cost_analysis()
    text = compiled.as_text()
    if name in STEPS:  # masks are a part of the state
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


def checked(
    fn: Any, tree: Any, width: int, devices: int, without: str | None = None
) -> None:
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
    alone = 0.0
    for name, make in programs(fn, tree, width).items():
        if name == without:
            continue
        start = time.perf_counter()
        found = compiled_cost(name, make(), size)
        if name == ALONE:
            alone = found.traffic
            continue
        model = costs(size, 1)[name]
        if name in STEPS:
            found = found._replace(traffic=found.traffic - alone)
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


def passes_of(tree: Any) -> dict[str, tuple[int, ...]]:
    """How often a choice reads all scores, and then the places of equals."""
    params, leaves = scale.made(tree), size_of(tree, 1).leaves
    found = {}
    for name, rule in (
        (UNIFORM, allocations.uniform()),
        (RANKING, allocations.global_ranking()),
    ):
        find = jax.jit(
            partial(
                jprune.find_masks,
                sparsity=0.5,
                where=scale.KERNELS,
                allocation=rule,
            )
        )
        seen = selection.watched(partial(find, params))
        found[name] = tuple(n // leaves for n in seen)
    return found


def measured(name: str) -> dict[str, tuple[float, float]]:
    """Of a table of `scale.py`: times of a read pass, memory."""
    found = {}
    for line in (OUTPUTS / f"{name}.txt").read_text().splitlines():
        cells = re.split(r"\s{2,}", line.strip())
        if len(cells) in (5, 8) and "run s" not in cells:
            at = 4 if len(cells) == 8 else 2  # of calls some cells are empty
            found[cells[0]] = float(cells[at]), float(cells[at + 2])
    return found


def beside_measured(
    name: str, tree: Any, devices: int, passes: dict[str, tuple[int, ...]]
) -> None:
    """The formulas beside a table of `scale.py`."""
    size, width = size_of(tree, devices), tree["norm"].shape[-1]
    each = W * sum(x.size for x in jax.tree.leaves(tree)) / devices
    mlp = Kernel(width, 4 * width, False), Kernel(4 * width, width, True)
    called = calls(size, int(each * devices / W), mlp, 256)
    most = max(map(sum, passes.values()))
    print(f"\n{name}.txt, {devices} devices of a CPU")
    heads = ("passes", "bytes", "times", "held", "measured")
    print(f"{'':27}" + "".join(f"{x:>10}" for x in heads))
    for operation, (times, memory) in measured(name).items():
        here = passes.get(operation)
        model = costs(size, sum(here) if here else most).get(operation)
        if model is not None:
            traffic, held = f"{model.traffic / each:.1f}", model.held
        elif operation in called:
            call = called[operation]
            traffic, held = "", call.held + call.on_host / devices
        else:
            continue
        cells = (
            *("{} + {}".format(*here) if here else "", traffic),
            *(f"{times:.1f}", f"{held / each:.2f}", f"{memory:.2f}"),
        )
        print(f"{operation:27}" + "".join(f"{x:>10}" for x in cells))


def at_scale(
    tree: Any, width: int, devices: int, passes: int, options: Any
) -> None:
    """What all operations cost on a tree, and what there is no memory for."""
    size = size_of(tree, devices)
    total = sum(x.size for x in jax.tree.leaves(tree))
    print(
        f"\nComputed: {total:,} parameters on {devices} devices, {passes} "
        f"passes, {options.bandwidth / 1e12:.2f} TB/s of memory,\n"
        f"{options.link / 1e9:.0f} GB/s and {options.latency * 1e6:.0f} us an "
        "exchange between devices"
    )
    heads = ("GB moved", "s", "exchanges", "MB", "s", "GB held", "1e9 ops")
    print(f"{'':27}" + "".join(f"{x:>10}" for x in heads))
    for name, cost in costs(size, passes).items():
        waits = cost.exchanges * options.latency + cost.received / options.link
        cells = (
            *(f"{cost.traffic / 1e9:.2f}",),
            f"{cost.traffic / options.bandwidth:.4f}",
            *(f"{cost.exchanges:,}", f"{cost.received / 1e6:.1f}"),
            *(f"{waits:.4f}", f"{cost.held / 1e9:.2f}"),
            f"{cost.operations / 1e9:,.1f}",
        )
        print(f"{name:27}" + "".join(f"{x:>10}" for x in cells))
    hidden, keys = width * 7 // 2, width // 8
    kernels = (
        Kernel(width, width, False),
        Kernel(width, keys, False, True),
        Kernel(width, keys, False, True),
        Kernel(width, width, True),
        Kernel(width, hidden, False),
        Kernel(width, hidden, False, True),
        Kernel(hidden, width, True),
    )
    print(f"\nThe same, of calls; {TOKENS} rows of inputs")
    heads = ("GB held", "fits", "GB on host", "1e12 ops")
    print(f"{'':27}" + "".join(f"{x:>12}" for x in heads))
    room = options.memory - W * total / devices
    for name, call in calls(size, total, kernels, TOKENS).items():
        cells = (
            *(f"{call.held / 1e9:.2f}", "yes" if call.held < room else "no"),
            *(f"{call.on_host / 1e9:.0f}", f"{call.operations / 1e12:,.0f}"),
        )
        print(f"{name:27}" + "".join(f"{x:>12}" for x in cells))
    print(
        f"\nA device has {options.memory / 1e9:.0f} GB, "
        f"{W * total / devices / 1e9:.2f} of them for its parameters."
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--devices", type=int, default=256)
    add("--width", type=int, default=8192, help="of Llama's shapes")
    add("--bandwidth", type=float, default=0.8e12, help="bytes/s of memory")
    add("--link", type=float, default=50e9, help="bytes/s between devices")
    add("--latency", type=float, default=1e-5, help="seconds of an exchange")
    add("--memory", type=float, default=16e9, help="bytes of a device")
    add("--units", action="store_true", help="compile those of Llama too")
    add("--sizes", nargs="*", default=["1e8", "1e9"], help="of scale.py")
    options = parser.parse_args(argv)
    jax.config.update(
        "jax_num_cpu_devices", max(options.devices, 2 * scale.DEVICES)
    )

    def mesh_of(devices: int) -> Any:
        return jax.make_mesh(
            (devices,),
            ("model",),
            axis_types=(jax.sharding.AxisType.Auto,),
            devices=jax.devices()[:devices],
        )

    mesh = mesh_of(scale.DEVICES)
    print("Bytes for each byte of the parameters, of one pass")
    with jax.set_mesh(mesh):
        trees = {
            name: scale.abstract("stacked", float(name), mesh)
            for name in options.sizes
        }
        for tree in list(trees.values())[-1:]:  # the others are alike
            width = tree["norm"].shape[-1]
            checked(scale.stacked, tree, width, scale.DEVICES)
    mesh = mesh_of(options.devices)
    large, whole = llama(mesh, options.width), llama(mesh, options.width, 1)
    with jax.set_mesh(mesh):
        without = None if options.units else UNITS
        checked(llama_fn, large, options.width, options.devices, without)
    print("\nAll passes; times and memory as measured")
    with jax.set_mesh(mesh_of(scale.DEVICES)):
        passes = {UNIFORM: (1, 0)}
        if trees:  # of the first: a billion weights take minutes
            passes = passes_of(next(iter(trees.values())))
        for name, tree in trees.items():
            beside_measured(f"scale_{name}", tree, scale.DEVICES, passes)
    most = max(map(sum, passes.values()))
    at_scale(large, options.width, options.devices, most, options)
    try:
        jax.eval_shape(partial(jprune.find_masks, sparsity=0.5), whole)
    except ValueError as error:
        print(f"All layers in one stack: {error}")
    print(f"\njax {jax.__version__}, {jax.devices()[0].platform}")


if __name__ == "__main__":
    main()
