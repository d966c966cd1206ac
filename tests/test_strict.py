"""Every public function in JAX's strict modes, which find what is implicit."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import jprune
from jprune import allocations, criteria, projections, report, structures

# Of two precisions; nothing is 0, and no two numbers of a leaf are equal.
PARAMS = {
    "a": {
        "kernel": jnp.cos(jnp.arange(64.0)).reshape(8, 8).astype(jnp.bfloat16),
        "bias": jnp.arange(1.0, 9),
    },
    "b": {"kernel": jnp.sin(jnp.arange(1.0, 33)).reshape(8, 4)},
}
GRADS = jax.tree.map(lambda p: p.astype(jnp.float32) / 3, PARAMS)
MASKS = jprune.find_masks(PARAMS, 0.5)
X = jnp.ones((2, 8))
FLOAT32 = jax.tree.map(lambda p: p.astype(jnp.float32), PARAMS)
RAMP = optax.linear_schedule(0.0, 0.5, 4)


def model(params: Any, x: Any) -> Any:
    h = jax.nn.relu(x @ params["a"]["kernel"] + params["a"]["bias"][None])
    return h @ params["b"]["kernel"]


def loss(params: Any, x: Any) -> Any:
    return jnp.sum(jnp.square(model(params, x)))


def steps(make: Callable[[], Any]) -> Callable[[], Any]:
    """Two updates: one that chooses and one that needn't."""

    def run() -> Any:
        tx = make()
        state = tx.init(PARAMS)
        for _ in range(2):
            updates, state = tx.update(GRADS, state, PARAMS)
        return updates, state

    return run


def found(**how: Any) -> Callable[[], Any]:
    def run() -> Any:
        masks = jprune.find_masks(PARAMS, 0.25, grads=GRADS, key=0, **how)
        return jax.jit(jprune.find_masks, static_argnames=how)(
            PARAMS, 0.5, grads=GRADS, key=0, masks=masks, **how
        )

    return run


def landed(projection: Callable[[Any], Any]) -> Callable[[], Any]:
    return lambda: jax.jit(projection)(PARAMS)


SCORES = jax.tree.map(jnp.abs, FLOAT32)
CALLS: dict[str, Callable[[], Any]] = {
    "keep_masks": steps(lambda: jprune.keep_masks(MASKS)),
    "prune": steps(lambda: jprune.prune(0.5)),
    "prune gradually": steps(lambda: jprune.prune(RAMP, every=2)),
    "prune by python": steps(lambda: jprune.prune(lambda c: int(c) / 2**30)),
    "rigl": steps(
        lambda: jprune.rigl(optax.sgd(0.1), 0.5, stop=9, every=1, start=0)
    ),
    "sparse_evolution": steps(
        lambda: jprune.sparse_evolution(
            optax.sgd(0.1), 0.5, fraction=0.5, every=1, replace_step=True
        )
    ),
    "project": steps(
        lambda: jprune.project(projections.soft_threshold(0.1), every=2)
    ),
    "project_frobenius_ball": steps(
        lambda: jprune.project_frobenius_ball(0.5, per="leaf")
    ),
    "with_gradients": steps(
        lambda: jprune.with_gradients(
            jprune.prune(0.5, criterion=criteria.fisher())
        )
    ),
    "magnitude": found(criterion=criteria.magnitude()),
    "random": found(criterion=criteria.random()),
    "gradient": found(criterion=criteria.gradient()),
    "taylor": found(criterion=criteria.taylor()),
    "squared": found(criterion=criteria.taylor("squared")),
    "movement": found(criterion=criteria.movement()),
    "fisher": found(criterion=criteria.fisher()),
    "snip": lambda: found(criterion=criteria.snip(loss, FLOAT32, X))(),
    "custom": found(criterion=criteria.custom(lambda params: params)),
    "fan_in": found(structure=structures.fan_in()),
    "group": found(structure=structures.group(3)),
    "block": found(structure=structures.block((3, 2), pooling="mean")),
    "n_m": found(structure=structures.n_m(2, 4)),
    "channel": found(structure=structures.channel(pooling="max")),
    "channel of signs": found(
        structure=structures.channel(), criterion=criteria.movement()
    ),
    "stacked": found(structure=structures.unstructured(batch_axis=0)),
    "erdos_renyi": found(allocation=allocations.erdos_renyi()),
    "fan_in of erdos_renyi": found(
        structure=structures.fan_in(), allocation=allocations.erdos_renyi()
    ),
    "l2": found(allocation=allocations.global_ranking("l2")),
    "lamp": found(allocation=allocations.global_ranking("lamp", 0.1)),
    "frobenius_ball": landed(projections.frobenius_ball(0.5)),
    "l0_ball": landed(projections.l0_ball(5)),
    "spectral_ball": landed(projections.spectral_ball(0.5)),
    "nuclear": landed(projections.nuclear(0.1)),
    "soft_threshold": landed(projections.soft_threshold(0.1)),
    "group_soft_threshold": landed(projections.group_soft_threshold(0.1)),
    "apply_masks": lambda: jprune.apply_masks(PARAMS, MASKS),
    "broadcast masks": lambda: jprune.apply_masks(
        PARAMS, {"a": {"kernel": jnp.ones(8, bool), "bias": None}, "b": None}
    ),
    "get_masks": lambda: jprune.get_masks(
        jprune.keep_masks(MASKS).init(PARAMS)
    ),
    "measure_sparsity": lambda: jax.jit(jprune.measure_sparsity)(MASKS),
    "summarize": lambda: str(jprune.summarize(PARAMS, MASKS)),
    "straight_through": lambda: jax.grad(
        lambda p: loss(jprune.straight_through(p, MASKS, decay=0.1), X)
    )(FLOAT32),
    "check_chain": lambda: jprune.check_chain(
        optax.chain(optax.sgd(0.1), jprune.prune(RAMP)), FLOAT32
    ),
    "top_k_mask": lambda: jprune.selection.top_k_mask(PARAMS, 9),
    "trace_units": lambda: jprune.trace_units(model, FLOAT32, X),
    "units": lambda: jprune.find_masks(
        FLOAT32,
        0.5,
        structure=jprune.units(
            jprune.trace_units(model, FLOAT32, X), by="parameters"
        ),
    ),
    "compact": lambda: jprune.compact(
        model,
        FLOAT32,
        X,
        masks={
            "a": {"kernel": jnp.arange(8)[None] > 3, "bias": None},
            "b": None,
        },
    ).certify(X),
    "report.cost": lambda: report.cost(model, FLOAT32, X, masks=MASKS),
}


CONCRETE = (  # they compute with values, not only with arrays
    "prune by python",
    "summarize",
    "check_chain",
    "trace_units",
    "compact",
    "report.cost",
)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.sweep(8)
def test_no_implicit_promotion(name: str) -> None:
    """Of ranks and of dtypes: both are told when a program is traced."""

    def traced() -> None:
        CALLS[name]()

    with (
        jax.numpy_rank_promotion("raise"),
        jax.numpy_dtype_promotion("strict"),
    ):
        traced() if name in CONCRETE else jax.eval_shape(traced)


QUICK = ("prune", "block", "frobenius_ball", "straight_through")


@pytest.mark.sweep(4)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
        for name in CALLS
    ],
)
def test_no_alarm_without_nan(name: str) -> None:
    with jax.debug_nans(True):
        CALLS[name]()
