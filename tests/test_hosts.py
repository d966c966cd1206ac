"""Two processes of `jax.distributed`, as on two hosts: nothing differs."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from test_faults import grads_of, params_of, tx_of

import jprune
from jprune import allocations, criteria, solvers, structures

HOSTS, DEVICES = 2, 4


def on_hosts(name: str, folder: Path, *, seconds: float = 300) -> None:
    """Runs ``name(folder)`` of this file on two hosts, and ends both."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_hosts as t; "
        "t.host(*sys.argv[2:])"
    )
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", code, here, name, str(folder), str(port)]
    said = [folder / f"host{i}.txt" for i in range(HOSTS)]
    running = []
    try:
        for i in range(HOSTS):
            with open(said[i], "wb") as file:
                one = subprocess.Popen(
                    [*command, str(i)], stdout=file, stderr=subprocess.STDOUT
                )
            running.append(one)
        end = time.monotonic() + seconds
        codes: list[int | None] = [None]
        # Where one has failed the other would wait for it.
        while None in codes and not any(codes) and time.monotonic() < end:
            time.sleep(0.05)
            codes = [one.poll() for one in running]
    finally:
        for one in running:
            one.kill()
            one.wait()
    words = "\n".join(file.read_text(errors="replace") for file in said)
    assert codes == [0] * HOSTS, words


def host(name: str, folder: str, port: str, number: str) -> None:
    """What one of the two does."""
    # Twice as many as are used: see conftest.py.
    jax.config.update("jax_num_cpu_devices", 2 * DEVICES)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_disable_most_optimizations", True)
    jax.distributed.initialize(f"127.0.0.1:{port}", HOSTS, int(number))
    globals()[name](Path(folder))
    jax.distributed.shutdown()
    os._exit(0)


def mesh_of() -> Any:
    """Two by four: the second axis goes from one host to the other."""
    some = [
        x for i in range(HOSTS) for x in jax.devices() if x.process_index == i
    ]
    by_host = np.array(some).reshape(HOSTS, 2 * DEVICES)[:, :DEVICES]
    devices = by_host.reshape(HOSTS, 2, 2).transpose(1, 0, 2).reshape(2, 4)
    return jax.sharding.Mesh(
        devices, ("x", "y"), axis_types=(AxisType.Auto,) * 2
    )


def spread(tree: Any, *spec: Any) -> Any:
    """Arrays that all hosts know, divided among them."""
    sharding = NamedSharding(mesh_of(), P(*spec))
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(
            np.shape(x), sharding, lambda where: np.asarray(x)[where]
        ),
        tree,
    )


def write(folder: Path, name: str, tree: Any) -> None:
    """All arrays, whole, by each host in a file of its own."""
    leaves, _ = jax.tree.flatten(process_allgather(tree, tiled=True))
    np.savez(folder / f"{name}{jax.process_index()}.npz", *leaves)


def check(folder: Path, name: str, wanted: Any, **how: Any) -> None:
    """Both hosts have written what one process has found."""
    for i in range(HOSTS):
        with np.load(folder / f"{name}{i}.npz") as found:
            leaves = jax.tree.leaves(wanted)
            assert len(found.files) == len(leaves)
            for file, leaf in zip(found.files, leaves, strict=True):
                if how:
                    np.testing.assert_allclose(found[file], leaf, **how)
                else:
                    np.testing.assert_array_equal(found[file], leaf)


# Masks ------------------------------------------------------------------------

LAST: dict[str, Any] = {"in_axis": -2, "out_axis": -1}
STRUCTURES = {
    "unstructured": structures.unstructured(),
    "fan_in": structures.fan_in(**LAST),
    "group": structures.group(2, **LAST),
    "block": structures.block((3, 4), **LAST),
    "n_m": structures.n_m(2, 4, **LAST),
    "channel": structures.channel(),
}
ALLOCATIONS = {
    "uniform": allocations.uniform(),
    "erdos_renyi": allocations.erdos_renyi(),
    "global_ranking": allocations.global_ranking(),
    "lamp": allocations.global_ranking("lamp", min_density=0.1),
    "given": allocations.given({"conv": 0.5, "dense": 1.0}),
}


def kernels() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    shapes = {"conv": (3, 2, 8, 12), "dense": (16, 8)}
    return {k: rng.normal(size=s).astype("f") for k, s in shapes.items()}


def fn(params: Any, x: Any) -> Any:
    return jnp.tanh(x @ params["w"] + params["b"]) @ params["v"]


def model() -> dict[str, Any]:
    rng = np.random.default_rng(1)
    shapes = {"w": (8, 12), "b": (12,), "v": (12, 8)}
    return {k: rng.normal(size=s).astype("f") for k, s in shapes.items()}


def all_masks(place: Any) -> dict[str, Any]:
    """By every structure and allocation that go together."""
    params, net = place(kernels()), place(model())
    found = {}
    for name, structure in STRUCTURES.items():
        for how, allocation in ALLOCATIONS.items():
            alike = name in ("fan_in", "n_m")
            if alike and how in ("global_ranking", "lamp"):
                continue
            if name == "n_m" and how == "given":
                continue
            choose = jax.jit(
                lambda p, s=structure, a=allocation: jprune.find_masks(
                    p, 0.5, structure=s, allocation=a
                )
            )
            found[f"{name} {how}"] = choose(params)
    graph = jprune.trace_units(fn, net, np.zeros((2, 8), "f"))
    for by in "units", "multiply_adds":
        units = jprune.units(graph, by=by)
        found[by] = jprune.find_masks(net, 0.5, structure=units)
    return found


def masks_on_hosts(folder: Path) -> None:
    def place(tree: Any) -> Any:
        return {
            k: spread(x, *(None,) * (x.ndim - 2), *"xy"[-x.ndim :])
            for k, x in tree.items()
        }

    with jax.set_mesh(mesh_of()):
        write(folder, "masks", all_masks(place))


@pytest.mark.slow
def test_masks_are_those_of_one_process(tmp_path: Path) -> None:
    on_hosts("masks_on_hosts", tmp_path)
    check(tmp_path, "masks", all_masks(lambda tree: tree))


# Training ---------------------------------------------------------------------


def stepping(tx: Any) -> Any:
    @jax.jit
    def step(params: Any, state: Any) -> Any:
        updates, state = tx.update(grads_of(params), state, params)
        return optax.apply_updates(params, updates), state

    return step


def restored(folder: Path, params: Any, tx: Any) -> Any:
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
        (params, tx.init(params)),
    )
    with ocp.StandardCheckpointer() as reader:
        return reader.restore(folder / "saved", like)


def train_on_hosts(folder: Path) -> None:
    tx, params = tx_of(), spread(params_of(), "x", "y")
    with jax.set_mesh(mesh_of()):  # so that counts are on both hosts too
        step, state = stepping(tx), tx.init(params)
        for _ in range(20):
            params, state = step(params, state)
        with ocp.StandardCheckpointer() as saver:
            saver.save(folder / "saved", (params, state))
        write(folder, "saved", jprune.get_masks(state))
        _, state = step(*restored(folder, spread(params_of(), "y", "x"), tx))
        write(folder, "next", jprune.get_masks(state))


@pytest.mark.slow
def test_a_training_and_its_checkpoint(tmp_path: Path) -> None:
    """Trained, saved from both, restored on other axes and in one process."""
    on_hosts("train_on_hosts", tmp_path)
    tx, params = tx_of(), jax.tree.map(jnp.asarray, params_of())
    step, state = stepping(tx), tx.init(params)
    for _ in range(20):
        params, state = step(params, state)
    check(tmp_path, "saved", jprune.get_masks(state))
    found = restored(tmp_path, params, tx)
    jax.tree.map(
        np.testing.assert_array_equal,
        jprune.get_masks(found[1]),
        jprune.get_masks(state),
    )
    _, state = step(*found)
    check(tmp_path, "next", jprune.get_masks(state))


# Inputs -----------------------------------------------------------------------

ROWS = np.random.default_rng(2).normal(size=(64, 8)).astype("f")
SOLVERS = {"admm": solvers.admm(), "sparsegpt": solvers.sparsegpt()}


def repaired(params: Any, x: Any) -> dict[str, Any]:
    found = {
        name: jprune.one_shot(fn, params, [x], 0.5, solver=solver)[:2]
        for name, solver in SOLVERS.items()
    }
    units = jprune.units(jprune.trace_units(fn, params, x))
    found["obs"] = jprune.one_shot(fn, params, [x], 0.5, structure=units)[:2]
    felt = criteria.gauss_newton(fn, params, x)
    masks = jprune.find_masks(params, 0.5, criterion=felt)
    return found | {"gauss_newton": (params, masks)}


def repair_on_hosts(folder: Path) -> None:
    own = ROWS[32 * jax.process_index() :][:32]
    rows = NamedSharding(mesh_of(), P("y"))
    x = jax.make_array_from_process_local_data(rows, own)
    params = spread(model(), "y")
    write(folder, "stats", jprune.calibrate(fn, params, [x]).moments)
    for name, (new, masks) in repaired(params, x).items():
        write(folder, f"{name} params", new)
        write(folder, f"{name} masks", masks)
    # Or each host by itself, and the sums added.
    mine = jprune.calibrate(fn, model(), [own])
    both = jax.tree.map(lambda x: x.sum(0), process_allgather(mine))
    masks = jprune.find_masks(model(), 0.5)
    write(folder, "added", spread(both.moments))
    write(folder, "refit", spread(jprune.refit(model(), masks, both)))


@pytest.mark.slow
def test_each_host_has_its_own_batches(tmp_path: Path) -> None:
    on_hosts("repair_on_hosts", tmp_path)
    stats = jprune.calibrate(fn, model(), [ROWS])
    for name in ("stats", "added"):
        check(tmp_path, name, stats.moments, rtol=1e-4, atol=1e-4)
    for name, (new, masks) in repaired(model(), ROWS).items():
        check(tmp_path, f"{name} masks", masks)
        check(tmp_path, f"{name} params", new, rtol=1e-3, atol=1e-4)
    new = jprune.refit(model(), jprune.find_masks(model(), 0.5), stats)
    check(tmp_path, "refit", new, rtol=1e-3, atol=1e-4)


# What is refused --------------------------------------------------------------


def refusals_on_hosts(folder: Path) -> None:
    params, x = spread(model() | {"b": np.ones(12)}, "y"), np.ones((2, 8), "f")
    here = {
        "compact": lambda: jprune.compact(fn, params, x),
        "cost": lambda: jprune.report.cost(fn, params, x),
        "export.save": lambda: jprune.export.save(folder / "m", fn, params, x),
        "export.save_sparse": lambda: jprune.export.save_sparse(
            folder / "m", params, {"w": np.ones((8, 12), bool)}
        ),
        "compare": lambda: jprune.compare(fn, params, fn, params, x),
        "compress": lambda: jprune.compress(
            fn, params, [x], holdout=[x + 1], score=lambda y, x: y[:, 0] > 0
        ),
    }
    for name, call in here.items():
        with pytest.raises(
            ValueError, match=rf"`{name}.*'\w' is divided among"
        ):
            call()
    together = {
        "calibrate": lambda: jprune.calibrate(fn, params, [x]),
        "one_shot": lambda: jprune.one_shot(fn, params, [x], 0.5),
        "gauss_newton": lambda: criteria.gauss_newton(fn, params, x),
        "sensitivity": lambda: jprune.search.sensitivity(
            fn, params, [x], structure=structures.channel()
        ),
        "distill": lambda: jprune.distill(fn, params, [x], optax.sgd(0.1), 1),
    }
    for name, call in together.items():
        with pytest.raises(ValueError, match=f"`{name}.*of this host alone"):
            call()
    with (
        jax.set_mesh(mesh_of()),
        pytest.raises(ValueError, match="or the mesh that is set, are on"),
    ):
        jprune.calibrate(fn, model(), [x])
    masks = spread({"w": np.arange(96).reshape(8, 12) < 60}, "y")
    assert jprune.summarize(params, masks).leaves[2].kept == 60


def test_what_one_host_cannot_know_is_refused(tmp_path: Path) -> None:
    on_hosts("refusals_on_hosts", tmp_path, seconds=60)
