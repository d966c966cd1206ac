"""Parameters that differ from device to device, inside ``jax.shard_map``."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jprune
from jprune import allocations, criteria, structures

CUBIC = optax.polynomial_schedule(0.0, 0.9, 3, 4, 0)
KEYS = jax.random.split(jax.random.key(0))
MODELS = {  # one for each of two devices
    "a": jax.random.normal(KEYS[0], (2, 8, 16)),
    "b": jax.random.normal(KEYS[1], (2, 16, 8)),
}


def grads_of(params: Any) -> Any:
    return jax.tree.map(lambda p: jnp.cos(3 * p) * 0.1, params)


def trained(make: Callable[[], Any]) -> Callable[[Any], Any]:
    def train(params: Any) -> Any:
        tx = optax.chain(optax.sgd(0.1), make())

        def step(carry: Any, _: None) -> tuple[Any, None]:
            params, state = carry
            updates, state = tx.update(grads_of(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        start = params, tx.init(params)
        (params, state), _ = jax.lax.scan(step, start, length=3)
        return params, jprune.get_masks(state)

    return train


CALLS: dict[str, Callable[[Any], Any]] = {
    "find_masks": lambda params: jprune.find_masks(params, 0.5),
    "prune": trained(lambda: jprune.prune(0.5)),
    "prune sometimes": trained(lambda: jprune.prune(CUBIC, every=2)),
    "one ranking": trained(
        lambda: jprune.prune(CUBIC, allocation=allocations.global_ranking())
    ),
    "erdos_renyi": trained(
        lambda: jprune.prune(0.5, allocation=allocations.erdos_renyi())
    ),
    "n_m": trained(lambda: jprune.prune(0.5, structure=structures.n_m(2, 4))),
    "channels by movement": trained(
        lambda: jprune.with_gradients(
            jprune.prune(
                CUBIC,
                criterion=criteria.movement(),
                structure=structures.channel(),
            )
        )
    ),
    "at random": trained(
        lambda: jprune.prune(0.5, criterion=criteria.random())
    ),
    "rigl": trained(
        lambda: jprune.rigl(optax.identity(), 0.5, stop=9, every=2)
    ),
    "in place of a step": trained(
        lambda: jprune.sparse_evolution(
            optax.identity(), 0.5, fraction=0.5, every=2, replace_step=True
        )
    ),
}
QUICK = ("find_masks", "prune sometimes", "rigl")


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
        for name in CALLS
    ],
)
@pytest.mark.sweep(32)
def test_each_device_has_its_own(name: str, kind: AxisType) -> None:
    call, mesh = CALLS[name], jax.make_mesh((2,), ("d",), axis_types=(kind,))

    def mine(models: Any) -> Any:
        found = call(jax.tree.map(lambda x: x[0], models))
        return jax.tree.map(lambda x: x[None], found)

    with jax.set_mesh(mesh):
        models = jax.device_put(MODELS, NamedSharding(mesh, P("d")))
        spread = jax.shard_map(
            mine, mesh=mesh, in_specs=P("d"), out_specs=P("d")
        )
        found = jax.tree.map(np.asarray, jax.jit(spread)(models))
    for i in range(2):
        alone = jax.jit(call)(jax.tree.map(lambda x: np.asarray(x)[i], MODELS))  # noqa: B023
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x[i], y, rtol=1e-6),  # noqa: B023
            found,
            alone,
        )
