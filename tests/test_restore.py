"""A compact model in a new process, from its plan and from its own files."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import linen as nn
from flax import nnx
from flax.training.train_state import TrainState

import jprune
from jprune.compaction import Plan

X = jax.random.normal(jax.random.key(1), (2, 4))


class Net(nn.Module):
    width: int = 8

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.Dense(3)(nn.tanh(nn.Dense(self.width)(x)))


class Module(nnx.Module):
    def __init__(self, width: int, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(4, width, rngs=rngs)
        self.last = nnx.Linear(width, 3, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.last(jnp.tanh(self.first(x)))


def equinox_model(width: int) -> Any:
    key = jax.random.key(0)
    return eqx.nn.MLP(4, 3, width, 1, activation=jnp.tanh, key=key)


def linen() -> tuple[Any, Any, Any]:
    params = Net().init(jax.random.key(0), X)["params"]
    return lambda p, x: Net().apply({"params": p}, x), params, None


def of_nnx() -> tuple[Any, Any, Any]:
    graphdef, state = nnx.split(Module(8, nnx.Rngs(0)))
    return lambda s, x: nnx.merge(graphdef, s)(x), state, None


def of_equinox() -> tuple[Any, Any, Any]:
    params, rest = eqx.partition(equinox_model(8), eqx.is_array)
    return lambda p, x: jax.vmap(eqx.combine(p, rest))(x), params, rest


def smaller_fn(kind: str, width: int) -> tuple[Any, Any]:
    """The smaller module's function and shapes, from its source alone."""
    if kind == "linen":
        net = Net(width)
        shapes = jax.eval_shape(net.init, jax.random.key(0), X)["params"]
        return lambda p, x: net.apply({"params": p}, x), shapes
    if kind == "nnx":
        module = nnx.eval_shape(lambda: Module(width, nnx.Rngs(0)))
        graphdef, shapes = nnx.split(module)
        return lambda s, x: nnx.merge(graphdef, s)(x), shapes
    shapes = eqx.filter_eval_shape(equinox_model, width)
    arrays, rest = eqx.partition(
        shapes, lambda x: isinstance(x, jax.ShapeDtypeStruct)
    )
    return lambda p, x: jax.vmap(eqx.combine(p, rest))(x), arrays


@pytest.mark.sweep(3)
@pytest.mark.parametrize(
    ("kind", "make"),
    [("linen", linen), ("nnx", of_nnx), ("equinox", of_equinox)],
)
def test_it_is_restored_both_ways(kind: str, make: Any, tmp_path: Path) -> None:
    fn, dense, _ = make()
    graph = jprune.trace_units(fn, dense, X)
    masks = jprune.find_masks(dense, 0.5, structure=jprune.units(graph))
    dense = jprune.apply_masks(dense, masks)
    small = jprune.compact(fn, dense, X)
    wanted = small.fn(small.params, X)
    (width,) = small.plan.sizes.values()
    assert width == 4
    module, shapes = smaller_fn(kind, width)

    # From the plan and the dense checkpoint.
    cut = Plan.from_json(small.plan.to_json()).apply(dense)
    # Equinox's modules know their widths: the arrays go into another one.
    cut = jax.tree.unflatten(jax.tree.structure(shapes), jax.tree.leaves(cut))
    np.testing.assert_allclose(module(cut, X), wanted, rtol=1e-5)

    # From a checkpoint of its own, into shapes that its source gives.
    with ocp.StandardCheckpointer() as saver:
        saver.save(tmp_path / "own", small.params)
        saver.wait_until_finished()
        own = saver.restore(tmp_path / "own", shapes)
    np.testing.assert_allclose(module(own, X), wanted, rtol=1e-5)

    # From a bundle, into the same.
    small.save(tmp_path / "bundle", X)
    bundle = jprune.export.load(tmp_path / "bundle")
    again = jprune.export.unflat(bundle.params, shapes)
    np.testing.assert_allclose(module(again, X), wanted, rtol=1e-5)


def restored(kind: str, folder: Path) -> None:
    """What a new process does, which has the model's source and these files."""
    _, dense, _ = MAKERS[kind]()
    plan = Plan.from_json((folder / "plan.json").read_text())
    width = plan.sizes[next(iter(plan.sizes))]
    module, shapes = smaller_fn(kind, width)
    with ocp.StandardCheckpointer() as reader:
        kept = jax.tree.map(jnp.zeros_like, dense)  # shapes, and no values
        whole = reader.restore(folder / "dense", kept)
        own = reader.restore(folder / "own", shapes)
    cut = jax.tree.unflatten(
        jax.tree.structure(shapes), jax.tree.leaves(plan.apply(whole))
    )
    np.savez(folder / "found.npz", module(cut, X), module(own, X))


MAKERS: dict[str, Any] = {
    "linen": linen,
    "nnx": of_nnx,
    "equinox": of_equinox,
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", MAKERS)
def test_a_new_process_restores_it(kind: str, tmp_path: Path) -> None:
    """From the plan and the dense checkpoint, and from one of its own."""
    fn, dense, _ = MAKERS[kind]()
    graph = jprune.trace_units(fn, dense, X)
    masks = jprune.find_masks(dense, 0.5, structure=jprune.units(graph))
    dense = jprune.apply_masks(dense, masks)
    small = jprune.compact(fn, dense, X)
    (tmp_path / "plan.json").write_text(small.plan.to_json())
    with ocp.StandardCheckpointer() as saver:
        saver.save(tmp_path / "dense", dense)
        saver.save(tmp_path / "own", small.params)
        saver.wait_until_finished()
    code = (
        "import sys, pathlib; sys.path.insert(0, sys.argv[1]); "
        "import test_restore as t; "
        "t.restored(sys.argv[2], pathlib.Path(sys.argv[3]))"
    )
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", code, here, kind, str(tmp_path)]
    subprocess.run(command, check=True, cwd=tmp_path)
    wanted = small.fn(small.params, X)
    with np.load(tmp_path / "found.npz") as found:
        for name in found.files:
            np.testing.assert_allclose(found[name], wanted, rtol=1e-5)


@pytest.mark.slow
def test_a_train_state_goes_on(tmp_path: Path) -> None:
    """Optimizer, masks and step count of the smaller model too."""
    fn, params, _ = linen()
    graph = jprune.trace_units(fn, params, X)
    tx = optax.chain(
        optax.sgd(0.1, momentum=0.9),
        jprune.prune(0.5, structure=jprune.units(graph)),
    )
    state = TrainState.create(apply_fn=fn, params=params, tx=tx)

    def step(state: TrainState) -> TrainState:
        grads = jax.grad(lambda p: jnp.sum(state.apply_fn(p, X) ** 2))(
            state.params
        )
        return state.apply_gradients(grads=grads)

    state = step(state)
    small = jprune.compact(fn, state.params, X)
    own = jprune.units(jprune.trace_units(small.fn, small.params, X), of=graph)
    tx = optax.chain(
        optax.sgd(0.1, momentum=0.9), jprune.prune(0.5, structure=own)
    )
    less = TrainState(
        step=state.step,
        apply_fn=small.fn,
        params=small.params,
        tx=tx,
        opt_state=small.take(state.opt_state),
    )
    with ocp.StandardCheckpointer() as saver:
        saver.save(tmp_path / "own", less)
        saver.wait_until_finished()
        back = saver.restore(
            tmp_path / "own", jax.eval_shape(lambda x: x, less)
        )
    one, two = step(less), step(back)
    jax.tree.map(np.testing.assert_array_equal, one.params, two.params)
    assert int(two.step) == 2
