"""What operations cost on a large tree of bfloat16, divided among 8 devices.

    python examples/benchmarks/scale.py --parameters 1e8

The tree is that of a transformer of 80 layers: "stacked" has six kernels with
all layers along axis 0, read by a scan, "layers" has 560 leaves, read one layer
after the other. Each kernel is divided among the devices along its hidden axis
(tensor parallelism). Each operation runs in a process of its own:

- "trace" and "compile" are the seconds until there is a program;
- "run" are the seconds of the second call, and "passes" how many times longer
  that is than reading all parameters once (`jnp.sum` of each leaf);
- "results" are the bytes of what comes out, "memory" what the process held at
  most beyond its parameters and before it freed anything, both for each byte
  of the parameters; "scores" is the same for float32 scores of the largest
  leaf, the least that a choice needs beside the masks;
- "exchanged" are the entries of the largest array that devices exchange, as the
  compiled program says. No weight and no score travels if it is small.

Operations that are no single program (`compact`, `save_sparse`, `calibrate`,
`one_shot`) show their seconds and memory alone. On a CPU the devices share the
cores and the memory of one machine, so passes mean more than seconds.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from compaction_memory import memory, settle
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import jprune
from jprune import allocations

DEVICES, LAYERS, HEADS = 8, 80, 8
UNITS = "mlp/down"  # pools that this kernel reads
KERNELS = "attention|mlp"
COLLECTIVE = (
    r"= (.*?) (?:all-reduce|all-gather|all-to-all|collective-permute|"
    r"reduce-scatter)(?:-start)?\("
)


def block(layer: Any, x: jax.Array) -> jax.Array:
    """Attention and hidden units, ``[batch, length, width]`` to the same."""
    y = x * layer["norm"].astype(x.dtype)
    q, k, v = (
        (y @ layer["attention"][name]).reshape(*x.shape[:2], HEADS, -1)
        for name in "qkv"
    )
    found = jax.nn.dot_product_attention(q, k, v).reshape(*x.shape[:2], -1)
    x = x + found @ layer["attention"]["o"]
    return x + jax.nn.relu(x @ layer["mlp"]["up"]) @ layer["mlp"]["down"]


def stacked(params: Any, x: jax.Array) -> jax.Array:
    """All layers, by a scan."""
    return jax.lax.scan(lambda x, w: (block(w, x), None), x, params)[0]


def unrolled(params: Any, x: jax.Array) -> jax.Array:
    """All layers, one after the other."""
    for i in range(len(params)):
        x = block(params[f"{i}"], x)
    return x


FORMS = {"stacked": stacked, "layers": unrolled}


def abstract(form: str, parameters: float, mesh: Any) -> Any:
    """Shapes and shardings of a tree of about so many parameters."""
    width = max(round((parameters / LAYERS / 12) ** 0.5 / 64), 1) * 64
    lead = (LAYERS,) if form == "stacked" else ()
    none = (None,) * len(lead)

    def leaf(shape: tuple[int, ...], spec: tuple[Any, ...]) -> Any:
        sharding = NamedSharding(mesh, P(*none, *spec))
        return jax.ShapeDtypeStruct(
            (*lead, *shape), jnp.bfloat16, sharding=sharding
        )

    def layer() -> Any:
        into = {name: leaf((width, width), (None, "model")) for name in "qkv"}
        return {
            "attention": {**into, "o": leaf((width, width), ("model", None))},
            "mlp": {
                "up": leaf((width, 4 * width), (None, "model")),
                "down": leaf((4 * width, width), ("model", None)),
            },
            "norm": leaf((width,), (None,)),
        }

    return (
        layer()
        if form == "stacked"
        else {f"{i}": layer() for i in range(LAYERS)}
    )


def made(tree: Any) -> Any:
    """Arrays of normal numbers, made where they stay."""
    leaves, structure = jax.tree.flatten(tree)
    found, programs = [], {}
    for i, x in enumerate(leaves):
        key = x.shape, x.sharding
        if key not in programs:

            def normal(key: Any, x: Any = x) -> jax.Array:
                size = x.shape[-2] if len(x.shape) > 1 else LAYERS
                return jax.random.normal(key, x.shape, x.dtype) / size**0.5

            programs[key] = jax.jit(normal, out_shardings=x.sharding)
        found.append(programs[key](jax.random.key(i)))
    return jax.block_until_ready(jax.tree.unflatten(structure, found))


def exchanged(text: str) -> int:
    """Entries of the largest result of a collective, of a compiled program."""
    most = 0
    for result in re.findall(COLLECTIVE, text):
        for sizes in re.findall(r"\w+\[([\d,]*)\]", result):
            most = max(
                most, int(np.prod([int(n) for n in sizes.split(",") if n]))
            )
    return most


def sums(params: Any) -> Any:
    """Reads all parameters once."""
    return jax.tree.map(lambda x: jnp.sum(x, dtype=jnp.float32), params)


Built = tuple[Callable[..., Any], Callable[[Any], tuple[Any, ...]], Any]


def nothing(params: Any) -> tuple[Any, ...]:
    """What a function needs beside the parameters."""
    del params
    return ()


def masks_by(**how: Any) -> Callable[..., Built]:
    """`find_masks` of all kernels, in a jitted function."""

    def build(form: str, tree: Any) -> Built:
        options = dict(how)
        if how.get("structure") == "units":
            width = jax.tree.leaves(tree)[-1].shape[-1]
            x = jax.ShapeDtypeStruct((1, 8, width), jnp.bfloat16)
            graph = jprune.trace_units(FORMS[form], tree, x)
            options["structure"] = jprune.units(graph, where=UNITS)
        else:
            options["where"] = KERNELS
        return lambda p: jprune.find_masks(p, 0.5, **options), nothing, ()

    return build


def stepped(fixed: bool) -> Callable[..., Built]:
    """A step of SGD that chooses masks anew, or keeps some."""

    def build(form: str, tree: Any) -> Built:
        del form, tree

        def chain(params: Any) -> Any:
            rising = optax.linear_schedule(0.4, 0.6, 10)  # new masks each step
            link = jprune.prune(rising, where=KERNELS)
            if fixed:
                masks = jax.tree.map(lambda x: x > 0, params)
                link = jprune.keep_masks(masks)
            return optax.chain(optax.sgd(0.1), link)

        made: list[Any] = []

        def state(params: Any) -> tuple[Any, ...]:
            made.append(chain(params))
            return (made[0].init(params),)  # divided as the parameters

        def step(params: Any, state: Any) -> Any:
            grads = jax.tree.map(lambda x: x * 0.5, params)
            updates, state = made[0].update(grads, state, params)
            return optax.apply_updates(params, updates), state

        return step, state, (0, 1)

    return build


PROGRAMS: dict[str, Callable[..., Built]] = {
    "read pass": lambda form, tree: (sums, nothing, ()),
    "find_masks, uniform": masks_by(allocation=allocations.uniform()),
    "find_masks, Erdos-Renyi": masks_by(allocation=allocations.erdos_renyi()),
    "find_masks, one ranking": masks_by(
        allocation=allocations.global_ranking()
    ),
    "find_masks, units": masks_by(structure="units"),
    "prune, masks chosen": stepped(False),
    "keep_masks": stepped(True),
}


def inputs(tree: Any, rows: int) -> jax.Array:
    """Of one sentence, the same on all devices."""
    width = jax.tree.leaves(tree)[-1].shape[-1]
    x = jax.random.normal(jax.random.key(0), (1, rows, width), jnp.bfloat16)
    return jax.device_put(x, P())


def compacted(form: str, params: Any) -> Any:
    """Half of the hidden units go."""
    x = inputs(params, 8)
    graph = jprune.trace_units(FORMS[form], params, x)
    units = jprune.units(graph, where=UNITS)
    masks = jax.jit(lambda p: jprune.find_masks(p, 0.5, structure=units))(
        params
    )
    return jprune.compact(FORMS[form], params, x, masks=masks).params


def saved(form: str, params: Any) -> Any:
    """Half of the weights, and a bit for each."""
    del form
    masks = jax.jit(lambda p: jprune.find_masks(p, 0.5, where=KERNELS))(params)
    with tempfile.TemporaryDirectory() as folder:
        jprune.export.save_sparse(Path(folder) / "sparse", params, masks)
    return masks


def calibrated(form: str, params: Any) -> Any:
    """The inputs of the hidden units, of 256 rows."""
    return jprune.calibrate(
        FORMS[form], params, [(inputs(params, 256),)], where="mlp"
    )


def repaired(form: str, params: Any) -> Any:
    """The hidden layers, by SparseGPT with 256 rows."""
    return jprune.one_shot(
        FORMS[form],
        params,
        [(inputs(params, 256),)],
        0.5,
        solver=jprune.solvers.sparsegpt(),
        where="mlp",
    ).params


CALLS = {
    "compact, half of the units": compacted,
    "save_sparse": saved,
    "calibrate": calibrated,
    "one_shot, SparseGPT": repaired,
}


def of_program(name: str, form: str, tree: Any) -> list[float]:
    """Trace, compile, run, results, memory (bytes), exchanged."""
    build, others, donated = PROGRAMS[name](form, tree)
    params = made(tree)
    rest = jax.block_until_ready(others(params))
    jitted = jax.jit(build, donate_argnums=donated)
    times = [time.perf_counter()]
    lowered = jitted.lower(params, *rest)
    times.append(time.perf_counter())
    compiled = lowered.compile()
    times.append(time.perf_counter())
    held = settle()
    found = jax.block_until_ready(compiled(params, *rest))
    peak = (memory("VmHWM") - held) * 2**20
    size = sum(x.nbytes for x in jax.tree.leaves(found))
    again = found if donated else (params, *rest)
    times.append(time.perf_counter())
    jax.block_until_ready(compiled(*again))
    times.append(time.perf_counter())
    trace, compile_, _, run = np.diff(times)
    return [trace, compile_, run, size, peak, exchanged(compiled.as_text())]


def of_call(name: str, form: str, tree: Any) -> list[float]:
    """The same of what is no single program; what is not known is NaN."""
    params = made(tree)
    held, start = settle(), time.perf_counter()
    found = jax.block_until_ready(CALLS[name](form, params))
    seconds = time.perf_counter() - start
    peak = (memory("VmHWM") - held) * 2**20
    size = sum(x.nbytes for x in jax.tree.leaves(found))
    return [np.nan, np.nan, seconds, size, peak, np.nan]


def cell(value: float, text: str) -> str:
    return "" if np.isnan(value) else text.format(value)


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the tables, or measures one operation for them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--parameters", type=float, default=1e8)
    add("--forms", nargs="+", default=[*FORMS])
    add("--only", nargs="+", default=[*PROGRAMS, *CALLS])
    add("--one", nargs=2, help="form and operation, measured here")
    args = parser.parse_args(argv)
    # Twice as many as are used: with as many threads as devices, those that
    # wait for each other may wait forever.
    jax.config.update("jax_num_cpu_devices", 2 * DEVICES)
    mesh = jax.make_mesh(
        (DEVICES,),
        ("model",),
        axis_types=(jax.sharding.AxisType.Auto,),
        devices=jax.devices()[:DEVICES],
    )
    if args.one:
        form, name = args.one
        measure = of_program if name in PROGRAMS else of_call
        with jax.set_mesh(mesh):
            found = measure(name, form, abstract(form, args.parameters, mesh))
        print(*found)
        return
    for form in args.forms:
        leaves = jax.tree.leaves(abstract(form, args.parameters, mesh))
        size = sum(x.size for x in leaves)
        scores = 4 * max(x.size for x in leaves) / (2 * size)
        print(
            f"\n{form}: {size:,} parameters in {len(leaves)} leaves, bfloat16; "
            f"scores {scores:.2f}"
        )
        heads = ("trace s", "compile s", "run s", "passes", "results")
        heads += ("memory", "exchanged")
        print(f"{'':27}" + "".join(f"{head:>11}" for head in heads))
        once = np.nan
        for name in args.only:
            command = [sys.executable, __file__, "--one", form, name]
            command += [f"--parameters={args.parameters}"]
            # Threads of OpenBLAS would spin beside those of the devices.
            printed = subprocess.check_output(
                command,
                text=True,
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
            )
            trace, compile_, run, result, peak, most = map(
                float, printed.split()[-6:]
            )
            once = run if name == "read pass" else once
            cells = (
                cell(trace, "{:.1f}"),
                cell(compile_, "{:.1f}"),
                cell(run, "{:.2f}"),
                cell(run / once, "{:.1f}"),
                cell(result / (2 * size), "{:.2f}"),
                cell(peak / (2 * size), "{:.2f}"),
                cell(most, "{:,.0f}"),
            )
            print(f"{name:27}" + "".join(f"{x:>11}" for x in cells), flush=True)
    print(
        f"\n{DEVICES} devices on {os.cpu_count()} cores, "
        f"jax {jax.__version__}, {jax.devices()[0].platform}"
    )


if __name__ == "__main__":
    main()
