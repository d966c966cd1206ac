"""Kills and full disks: what was saved stays, and what goes on ends the same.

Processes here are forked from one that has imported JAX and not begun to use
it, which saves the time of the imports; what they are killed by is real.
"""

import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jprune
from jprune import criteria
from jprune.export import load, load_sparse, save, save_sparse

resource = pytest.importorskip("resource")  # limits, of POSIX


def forked(call: Callable[..., None], *args: Any) -> int:
    """The exit code of a call in a process of its own: -9 is SIGKILL."""
    pid = os.fork()
    if not pid:
        signal.alarm(120)
        try:
            call(*args)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def in_processes(name: str, *args: Any) -> list[int]:
    """What ``name(*args)`` of this file, which forks, says of its processes."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_faults as t; "
        "print('codes', *getattr(t, sys.argv[2])(*sys.argv[3:]))"
    )
    here = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", code, here, name, *map(str, args)],
        capture_output=True,
        text=True,
        timeout=600,
    )
    last = done.stdout.rpartition("codes")[2]
    assert done.returncode == 0, done.stderr
    codes = [int(x) for x in last.split()]
    assert 1 not in codes, done.stderr
    return codes


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def compile_once(folder: str) -> None:
    """What an undisturbed process has compiled, those that are killed read."""
    for name, value in {
        "compilation_cache_dir": str(Path(folder).parent / "xla"),
        "persistent_cache_min_compile_time_secs": 0,
        "persistent_cache_min_entry_size_bytes": -1,
    }.items():
        jax.config.update(f"jax_{name}", value)


def dump(file: Path, tree: Any) -> None:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    arrays: dict[str, Any] = {
        jax.tree_util.keystr(k): np.asarray(x) for k, x in leaves
    }
    np.savez(file, **arrays)


def same_bits(one: Any, other: Any) -> None:
    """All arrays of two mappings, by their bits."""
    assert set(one) == set(other)
    for name in one:
        a, b = np.asarray(one[name]), np.asarray(other[name])
        assert (a.dtype, a.shape) == (b.dtype, b.shape), name
        assert a.tobytes() == b.tobytes(), name


# Trainings --------------------------------------------------------------------

STEPS, EVERY, KILLS = 60, 3, 20


def tx_of() -> Any:
    """One kernel is pruned by what gradients say, one rewired, one ranked."""
    ramp = optax.polynomial_schedule(0.0, 0.8, 3, 40, 5)
    felt = jprune.prune(ramp, criterion=criteria.movement(), every=2)
    return optax.partition(
        {
            "a": jprune.with_gradients(optax.chain(optax.adam(0.02), felt)),
            "b": jprune.rigl(optax.adam(0.02), 0.7, every=4, stop=50),
            "c": optax.chain(optax.adam(0.02), jprune.prune(ramp, every=5)),
        },
        {"a": "a", "b": "b", "c": "c"},
    )


def params_of() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    shapes = {"a": (8, 16), "b": (16, 16), "c": (16, 8)}
    return {k: rng.normal(size=s).astype("f") for k, s in shapes.items()}


def train(folder: str, kill: int | None) -> None:
    """Goes on from the last checkpoint; dies after the step ``kill``."""
    compile_once(folder)
    tx = tx_of()

    @jax.jit
    def init() -> Any:
        params = jax.tree.map(jnp.asarray, params_of())
        return {"params": params, "opt_state": tx.init(params)}

    @jax.jit
    def update(state: Any, number: Any) -> Any:
        x = jax.random.normal(
            jax.random.fold_in(jax.random.key(0), number), (9, 8)
        )

        def loss(p: Any) -> Any:
            y = jnp.tanh(jnp.tanh(x @ p["a"]) @ p["b"]) @ p["c"]
            return jnp.mean((y - jnp.sin(3 * x)) ** 2)

        params = state["params"]
        updates, new = tx.update(
            jax.grad(loss)(params), state["opt_state"], params
        )
        return {
            "params": optax.apply_updates(params, updates),
            "opt_state": new,
        }

    manager = ocp.CheckpointManager(Path(folder) / "steps")
    state, first = jax.device_put(init(), jax.devices()[0]), 0
    if manager.latest_step() is not None:
        first = manager.latest_step()
        like = ocp.args.StandardRestore(jax.eval_shape(init))
        state = manager.restore(first, args=like)
    for number in range(first + 1, STEPS + 1):
        state = update(state, number)
        if number % EVERY == 0:
            manager.save(number, args=ocp.args.StandardSave(state))
        if number == kill:
            die()  # a save may have begun in another thread
    manager.close()
    dump(Path(folder) / "end.npz", state)
    dump(Path(folder) / "masks.npz", jprune.get_masks(state["opt_state"]))


def kill_trainings(folder: str) -> Iterator[int]:
    """An undisturbed one; then one that is killed again and again."""
    steps = np.random.default_rng(0).choice(STEPS, KILLS, replace=False) + 1
    for name, kills in ("whole", [None]), ("killed", [*sorted(steps), None]):
        (Path(folder) / name).mkdir()
        for kill in kills:
            yield forked(train, f"{folder}/{name}", kill)


@pytest.mark.slow
def test_a_training_is_killed_at_twenty_steps(tmp_path: Path) -> None:
    codes = in_processes("kill_trainings", tmp_path)
    assert codes == [0, *[-signal.SIGKILL] * KILLS, 0]
    for file in ("end.npz", "masks.npz"):
        with (
            np.load(tmp_path / "whole" / file) as one,
            np.load(tmp_path / "killed" / file) as other,
        ):
            same_bits(one, other)
            if file == "masks.npz":
                left = {name: float(one[name].mean()) for name in one}
    assert left == pytest.approx(
        {"['a']": 0.2, "['b']": 0.3, "['c']": 0.2}, abs=0.01
    )


# Another mesh -----------------------------------------------------------------

Mesh = tuple[tuple[int, ...], tuple[str, ...], AxisType]
EIGHT: Mesh = (4, 2), ("x", "y"), AxisType.Auto
MESHES: dict[str, Mesh] = {
    "two, Explicit": ((2,), ("z",), AxisType.Explicit),
    "eight, other axes": ((2, 4), ("y", "z"), AxisType.Explicit),
    "one": ((1,), ("x",), AxisType.Auto),
}


def placed(tree: Any, mesh: Any) -> Any:
    """Kernels divided along as many axes as the mesh has."""
    spec = P(*mesh.axis_names) if mesh.size > 1 else P()
    return jax.device_put(tree, NamedSharding(mesh, spec))


def grads_of(params: Any) -> Any:
    return jax.tree.map(lambda p: jnp.cos(3 * p), params)


@contextmanager
def on(mesh: Mesh) -> Iterator[tuple[Any, Any, Any]]:
    """The parameters, a transform and its jitted step, on a mesh."""
    shape, names, kind = mesh
    made = jax.make_mesh(
        shape,
        names,
        axis_types=(kind,) * len(names),
        devices=jax.devices()[: int(np.prod(shape))],
    )
    tx = tx_of()

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        updates, state = tx.update(grads_of(params), state, params)
        return optax.apply_updates(params, updates), state

    with jax.set_mesh(made):
        yield placed(params_of(), made), tx, step


@pytest.mark.slow
@pytest.mark.parametrize("name", MESHES)
def test_a_checkpoint_goes_to_another_mesh(name: str, tmp_path: Path) -> None:
    """The masks of the next refresh are the same, bit for bit."""
    with on(EIGHT) as (params, tx, step):
        state = tx.init(params)
        for _ in range(20):
            params, state = step(params, state)
        with ocp.StandardCheckpointer() as saver:
            saver.save(tmp_path / "step", (params, state))
        before = jprune.get_masks(state)
        _, state = step(params, state)
        wanted = jprune.get_masks(state)
    with on(MESHES[name]) as (params, tx, step):
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=x.sharding
            ),
            (params, tx.init(params)),
        )
        with ocp.StandardCheckpointer() as reader:
            params, state = reader.restore(tmp_path / "step", like)
        same_bits(jprune.get_masks(state), before)
        _, state = step(params, state)
    same_bits(jprune.get_masks(state), wanted)
    for leaf, mask in wanted.items():  # all three were refreshed
        assert (np.asarray(mask) != np.asarray(before[leaf])).any(), leaf


# Files ------------------------------------------------------------------------

X = np.ones((2, 8), np.float32)


def fn(params: Any, x: Any) -> Any:
    return jnp.tanh(jnp.tanh(x @ params["a"]) @ params["b"]) @ params["c"]


def model_of(seed: int) -> dict[str, Any]:
    """A third of its units is 0."""
    rng = np.random.default_rng(seed)
    shapes = {"a": (8, 60), "b": (60, 60), "c": (60, 8)}
    found = {k: rng.normal(size=s).astype("f") for k, s in shapes.items()}
    found["a"][:, 40:] = 0
    return found


def write(name: str, path: Path, seed: int) -> None:
    params = model_of(seed)
    if name == "save_sparse":
        save_sparse(path, params)
    elif name == "export.save":
        save(path, fn, params, X)
    else:
        jprune.compact(fn, params, X).save(path, X)


def read(name: str, path: Path) -> Any:
    return (load_sparse if name == "save_sparse" else load)(path).params


PLACES = {
    "export.save": "m",
    "small.save": "m.zip",
    "save_sparse": "m.safetensors",
}
SIZES = 1, 5_000, 12_000  # in the first part of a bundle, and in a later one


@contextmanager
def full_after(size: int) -> Iterator[None]:
    """No file can grow beyond ``size`` bytes: to write more is an OSError."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


@pytest.mark.parametrize("name", PLACES)
def test_a_full_disk_leaves_the_old_file(name: str, tmp_path: Path) -> None:
    place = tmp_path / PLACES[name]
    write(name, place, 0)
    before = read(name, place)
    for size in SIZES:
        with full_after(size), pytest.raises(OSError, match="too large"):
            write(name, place, 1)
        same_bits(read(name, place), before)
    write(name, place, 1)
    assert read(name, place)["b"].tobytes() != before["b"].tobytes()
    assert not list(tmp_path.rglob("*.tmp"))


def die_beyond(size: int) -> None:
    """The kernel kills the process where it writes the byte after ``size``."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def killed_while_it_writes(name: str, path: str, size: int) -> None:
    die_beyond(size)
    write(name, Path(path), 1)


def kill_saves(folder: str) -> Iterator[int]:
    for name, file in PLACES.items():
        for size in SIZES:
            for old in ("old", "none"):
                place = f"{folder}/{name} {size} {old}/{file}"
                yield forked(killed_while_it_writes, name, place, size)


@pytest.mark.slow
def test_a_save_is_killed_while_it_writes(tmp_path: Path) -> None:
    before = {}
    for name, file in PLACES.items():
        for size in SIZES:
            (tmp_path / f"{name} {size} none").mkdir()
            (tmp_path / f"{name} {size} old").mkdir()
            write(name, tmp_path / f"{name} {size} old" / file, 0)
        before[name] = read(name, tmp_path / f"{name} {size} old" / file)
    codes = in_processes("kill_saves", tmp_path)
    assert codes == [-signal.SIGXFSZ] * (2 * len(PLACES) * len(SIZES))
    for folder in sorted(tmp_path.iterdir()):
        name, _, old = folder.name.split(" ")
        place = folder / PLACES[name]
        assert list(folder.rglob("*.tmp"))  # it was killed in the middle
        if old == "old":
            same_bits(read(name, place), before[name])
        write(name, place, 1)  # what is left is in nobody's way
        assert read(name, place)["b"].tobytes() != before[name]["b"].tobytes()
        if place.is_dir():
            assert not list(place.glob(".*"))


# A search ---------------------------------------------------------------------


def search(folder: str, name: str, kill: str | None) -> None:
    """``compress``, which dies in a fine-tuning or while it writes a model."""
    compile_once(f"{folder}/{name}")
    import test_compress as problem

    calls = []

    def finetune(fn: Any, params: Any, masks: Any) -> Any:
        calls.append(1)
        if kill == f"tuning {len(calls)}":
            die()
        if kill == "writing":  # what is written next are these parameters
            die_beyond(400)
        return jax.tree.map(lambda x: x * 1.0, params)

    result = problem.compress(
        budgets=(0.7, 0.5, 0.4), resume=Path(folder) / name, finetune=finetune
    )
    words = f"{result.front}\n{result.promise}\n{result.stopped}"
    found = {
        "params": result.params,
        "small": result.small.params,
        "masks": result.masks,
        "words": words,
        "plan": result.small.plan.to_json(),
    }
    dump(Path(folder) / f"{name}.npz", found)


def kill_searches(folder: str) -> Iterator[int]:
    yield forked(search, folder, "whole", None)
    for kill in "tuning 1", "writing", "tuning 2", "tuning 2", None:
        yield forked(search, folder, "killed", kill)
        if kill == "writing":
            assert list(Path(folder).glob("killed/*.part.npz"))


@pytest.mark.slow
def test_compress_is_killed_and_called_again(tmp_path: Path) -> None:
    """In a new process each time, which knows no more than the folder."""
    codes = in_processes("kill_searches", tmp_path)
    kill = -signal.SIGKILL
    assert codes == [0, kill, -signal.SIGXFSZ, kill, kill, 0]
    with (
        np.load(tmp_path / "whole.npz") as one,
        np.load(tmp_path / "killed.npz") as other,
    ):
        same_bits(one, other)
