"""The ways to divide a training among devices, each beside one device.

    python examples/parallelism.py

Eight CPU devices stand for an accelerator each. For every way the script asks:
are masks those of one device, bit for bit, and divided as the parameters are?
How much travels while they are chosen? The programs that XLA makes are read
for it: a weight that is gathered would show.
"""

import math
import re
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import flags, print_table
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm import tqdm

import jprune

# Before the first array; twice as many as are used, for the CPU client has as
# many threads as devices: with none to spare its collectives may wait forever.
jax.config.update("jax_num_cpu_devices", 16)
jax.config.update("jax_disable_most_optimizations", True)  # compiles faster
args = flags(
    __doc__,
    only=("", "the ways with this in their names"),
    width=(128, "hidden units of a layer"),
    steps=(4, "steps of each training"),
)


class Shape(NamedTuple):
    """One way: the devices, how leaves lie on them, and the model."""

    axes: dict[str, int]
    specs: dict[str, P]
    batch: P
    model: str = "mlp"
    memory: str | None = None  # None: where the devices compute


ONE, TWO = P("x"), P("x", "y")
SHAPES = {
    "data parallel": Shape({"x": 8}, {"a": P(), "b": P()}, ONE),
    "FSDP": Shape({"x": 8}, {"a": ONE, "b": ONE}, ONE),
    "tensor parallel": Shape({"x": 8}, {"a": P(None, "x"), "b": ONE}, P()),
    "FSDP x tensor parallel": Shape(
        {"x": 2, "y": 4}, {"a": TWO, "b": P("y", "x")}, ONE
    ),
    "pipeline by shard_map": Shape(
        {"x": 8}, {"a": ONE, "b": ONE}, P(), "pipeline"
    ),
    "experts, ragged, by shard_map": Shape(
        {"x": 8}, {"a": ONE, "b": ONE}, P(), "experts"
    ),
    "four devices of eight": Shape({"x": 4}, {"a": ONE, "b": ONE}, ONE),
    "in pinned_host memory": Shape(
        {"x": 8}, {"a": ONE, "b": ONE}, ONE, memory="pinned_host"
    ),
}


def mlp(params, x, mesh=None):
    hidden = jax.nn.relu(x @ params["a"])
    if mesh is not None and mesh.are_all_axes_explicit:  # it must be said
        out = jax.typeof(x).sharding.spec
        return jnp.dot(hidden, params["b"], out_sharding=out)
    return hidden @ params["b"]


def block(a, b, x):
    return x + jax.nn.relu(x @ a) @ b


def pipeline(params, x, mesh=None):
    """Eight blocks; on a mesh each device has one and passes ``x`` on."""
    if mesh is None:
        passed = jax.lax.scan(
            lambda x, p: (block(p["a"], p["b"], x), None), x, params
        )
        return passed[0]

    def stage(params, x):
        a, b = params["a"][0], params["b"][0]
        x = jax.lax.pcast(x, "x", to="varying")
        around = [(i, (i + 1) % 8) for i in range(8)]
        for _ in range(8):
            x = jax.lax.ppermute(block(a, b, x), "x", around)
        first = jax.lax.axis_index("x") == 0  # where it began, and is again
        return jax.lax.psum(jnp.where(first, x, 0), "x")

    return jax.shard_map(
        stage, mesh=mesh, in_specs=(P("x"), P()), out_specs=P()
    )(params, x)


def experts(params, x, mesh=None):
    """Row i is for one of eight experts; each gets another number of rows."""
    sizes = jnp.array([0, 3, 5, 8, 1, 7, 6, 2])

    def mine(params, x, sizes):
        hidden = jax.nn.relu(jax.lax.ragged_dot(x, params["a"], sizes))
        return jax.lax.ragged_dot(hidden, params["b"], sizes)

    if mesh is None:
        return mine(params, x, sizes)

    def local(params, x):
        i = jax.lax.axis_index("x")
        ends = jnp.cumsum(sizes)
        row = jnp.arange(len(x))
        own = (row >= (ends - sizes)[i]) & (row < ends[i])
        # Its own rows first, as ragged_dot wants them, and then back.
        order = jnp.argsort(~own)
        found = mine(params, x[order], sizes[i][None])
        found = jnp.where(own[order][:, None], found, 0)
        return jax.lax.psum(found[jnp.argsort(order)], "x")

    return jax.shard_map(
        local, mesh=mesh, in_specs=(P("x"), P()), out_specs=P()
    )(params, x)


MODELS: dict[str, Callable] = {f.__name__: f for f in (mlp, pipeline, experts)}
X = jax.random.normal(jax.random.key(1), (32, 64))


def make_params(model):
    stack = () if model == "mlp" else (8,)
    keys = jax.random.split(jax.random.key(0))
    return {
        "a": jax.random.normal(keys[0], (*stack, 64, args.width)) / 8,
        "b": jax.random.normal(keys[1], (*stack, args.width, 64)) / 8,
    }


def choices(model):
    """What ``find_masks`` and ``prune`` are called with, by name."""
    graph = jprune.trace_units(MODELS[model], make_params(model), X)
    one_ranking = jprune.allocations.global_ranking()
    return {
        "uniform": {"allocation": jprune.allocations.uniform()},
        "one ranking": {"allocation": one_ranking},
        "units": {"structure": jprune.units(graph)},
    }


def most_that_travels(compiled):
    """The largest result of a collective, in numbers of one device."""
    kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    results = re.findall(
        rf"= (.*?) (?:{kinds})(?:-start)?\(", compiled.as_text()
    )
    shapes = re.findall(r"\w+\[([\d,]*)\]", " ".join(results))
    sizes = (map(int, filter(None, shape.split(","))) for shape in shapes)
    return max(map(math.prod, sizes), default=0)


def differing(found, wanted):
    """How many entries of two mask trees differ."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    return sum(int(np.sum(np.asarray(x) != np.asarray(y))) for x, y in pairs)


def lie_as(found, params, memory=None):
    """Whether leaves lie as parameters do, or so but in another memory."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(params), strict=True)
    return all(
        x.sharding.is_equivalent_to(
            p.sharding.with_memory_kind(memory or p.sharding.memory_kind),
            p.ndim,
        )
        for x, p in pairs
    )


def place(shape, kind):
    """The mesh of a way, with parameters and a batch on it."""
    sizes = tuple(shape.axes.values())
    devices = jax.devices()[: math.prod(sizes)]
    mesh = jax.make_mesh(
        sizes, tuple(shape.axes), (kind,) * len(sizes), devices=devices
    )
    specs = {
        name: NamedSharding(mesh, spec, memory_kind=shape.memory)
        for name, spec in shape.specs.items()
    }
    params = jax.device_put(make_params(shape.model), specs)
    return mesh, params, jax.device_put(X, NamedSharding(mesh, shape.batch))


def to(space, tree):
    """Arrays to another memory; step counts stay where they are."""
    return jax.tree.map(
        lambda x: jax.device_put(x, space) if x.ndim else x, tree
    )


def make_step(tx, model, mesh, memory):
    """A jitted step that takes its parameters and state, and returns them."""

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, x):
        if memory:  # nothing is computed there: it is fetched, and put back
            params, state = to(jax.memory.Space.Device, (params, state))

        def loss(params):
            return jnp.mean((MODELS[model](params, x, mesh) - 1) ** 2)

        updates, state = tx.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
        if memory:
            params, state = to(jax.memory.Space.Host, (params, state))
        return params, state

    return step


def train(last, shape, mesh, params, x):
    """Trains copies of ``params``; also says whether all were donated."""
    tx = optax.chain(optax.adam(1e-2), last)
    params = jax.tree.map(jnp.copy, params)
    state, step = (
        tx.init(params),
        make_step(tx, shape.model, mesh, shape.memory),
    )
    donated = True
    for _ in range(args.steps):
        before = jax.tree.leaves((params, state))
        params, state = step(params, state, x)
        donated &= all(leaf.is_deleted() for leaf in before)
    return params, state, donated


def fetched(params, shape):
    """Inside of ``jit``: parameters where they can be computed with."""
    return to(jax.memory.Space.Device, params) if shape.memory else params


def yes(ok):
    return "yes" if ok else "no"


def find_row(call, wanted, shape, params):
    """``find_masks`` in ``jit``, beside the masks of one device."""
    half = partial(jprune.find_masks, sparsity=0.5, **call)
    find = jax.jit(lambda params: half(fetched(params, shape)))
    compiled = find.lower(params).compile()
    masks = compiled(params)
    computed = "device" if shape.memory else None
    alike = yes(lie_as(masks, params, memory=computed))
    if alike == "no" and not shape.memory:
        outside = yes(lie_as(half(params), params))
        alike = f"no ({outside} outside of jit)"
    shard = min(p.addressable_shards[0].data.size for p in params.values())
    return differing(masks, wanted), alike, most_that_travels(compiled), shard


def step_row(last, wanted, shape, mesh, params, x):
    """A training with donation, beside that of one device."""
    after, state, donated = train(last, shape, mesh, params, x)
    masks = jprune.get_masks(state)
    zeros = jprune.apply_masks(*jax.device_get((after, masks)))
    return (
        differing(masks, wanted),
        differing(after, zeros),
        yes(lie_as(masks, params)),
        yes(lie_as(after, params)),
        yes(donated),
    )


def rows_of(name, shape):
    """The rows of one way for both tables."""
    found, trained = [], []
    alone, calls = make_params(shape.model), choices(shape.model)
    masks = {
        what: jax.jit(partial(jprune.find_masks, sparsity=0.5, **call))(alone)
        for what, call in calls.items()
    }
    ramp = optax.linear_schedule(0.3, 0.6, args.steps)
    pruners = {
        "prune, one ranking": jprune.prune(ramp, **calls["one ranking"]),
        "prune, units": jprune.prune(ramp, **calls["units"]),
        "keep_masks": jprune.keep_masks(masks["uniform"]),
    }
    here = shape._replace(memory=None)
    wanted = {
        what: jprune.get_masks(train(last, here, None, alone, X)[1])
        for what, last in pruners.items()
    }
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh, params, x = place(shape, kind)
        way = f"{name}, {kind.name}"
        with jax.set_mesh(mesh):
            for what, call in calls.items():
                row = find_row(call, masks[what], shape, params)
                found.append((way, what, *row))
            if shape.memory:  # masks beside the weights; see what is refused
                there = {name: p.sharding for name, p in params.items()}
                held = jax.device_put(masks["uniform"], there)
                pruners["keep_masks"] = jprune.keep_masks(held)
            for what, last in pruners.items():
                row = step_row(last, wanted[what], shape, mesh, params, x)
                trained.append((way, what, *row))
    return found, trained


def refusals():
    """What has to be done in another way, and the first words about it."""
    kernels = make_params("mlp")
    halves = jax.devices()[:4], jax.devices()[4:8]
    apart = {
        name: jax.device_put(
            p, NamedSharding(jax.make_mesh((4,), ("x",), devices=half), P("x"))
        )
        for (name, p), half in zip(kernels.items(), halves, strict=True)
    }
    pinned = jax.device_put(
        kernels,
        jax.sharding.SingleDeviceSharding(
            jax.devices()[0], memory_kind="pinned_host"
        ),
    )
    for what, params in (
        ("layers on different devices", apart),
        ("pinned_host, not fetched", pinned),
    ):
        try:
            jprune.find_masks(params, 0.5)
            yield what, "runs"
        except ValueError as error:
            yield what, f"{error!s:.63}..."
    own = {
        name: jprune.find_masks({name: p}, 0.5)[name]
        for name, p in apart.items()
    }
    wanted = jprune.find_masks(
        kernels, 0.5, allocation=jprune.allocations.uniform()
    )
    alike = "divided alike" if lie_as(own, apart) else "divided otherwise"
    same = f"{differing(own, wanted)} differ, {alike}"
    yield "layers on different devices, one call each", same


results = {
    name: rows_of(name, shape)
    for name, shape in tqdm(SHAPES.items(), desc="ways")
    if args.only in name
}


def together(cells):
    """One cell of three: "yes", or which of them is another."""
    others = [f"{what}: {cell}" for what, cell in cells if cell != "yes"]
    return "; ".join(others) or "yes"


def summed_up(found, trained):
    """The rows of a way on one kind of axes as one row of the table."""
    _, calls, wrong, alike, travels, weights = zip(*found, strict=True)
    _, lasts, masks, zeros, masks_alike, alike_too, donated = zip(
        *trained, strict=True
    )
    ends = [
        "yes" if {a, b} == {"yes"} else "no"
        for a, b in zip(masks_alike, alike_too, strict=True)
    ]
    return (
        *(found[0][0], sum(wrong), together(zip(calls, alike, strict=True))),
        *(", ".join(map(str, travels)), weights[0], sum(masks), sum(zeros)),
        together(zip(lasts, ends, strict=True)),
        together(zip(lasts, donated, strict=True)),
    )


rows = [
    summed_up(found[i : i + 3], trained[i : i + 3])
    for found, trained in results.values()
    for i in (0, 3)
]
print("`find_masks` in `jit`: uniform, one ranking, units")
print()
print_table(
    ("", "masks differ", "divided alike", "travel at once", "of a weight"),
    [row[:5] for row in rows],
)
print()
print(
    f"{args.steps} jitted steps: `prune` in one ranking, of units, `keep_masks`"
)
print()
print_table(
    ("", "masks differ", "zeros lost", "divided alike", "donated"),
    [(row[0], *row[5:]) for row in rows],
)
print()
print("Weights that `find_masks` does not take at once")
print()
refused = list(refusals())
print_table(("", "what happens"), refused)
