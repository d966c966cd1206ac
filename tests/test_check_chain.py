"""check_chain tells right from wrong chains."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jprune

CUBIC = optax.polynomial_schedule(0.0, 0.8, 3, 5000, 500)
PARAMS = {
    "kernel": jnp.linspace(-1, 1, 48).reshape(6, 8),
    "bias": jnp.ones(8),
}
MASKS = jprune.find_masks(PARAMS, 0.5)

RIGHT: dict[str, Any] = {
    "prune": lambda: optax.chain(
        optax.adamw(0.1), jprune.prune(CUBIC, every=100)
    ),
    "keep_masks": lambda: optax.chain(optax.sgd(0.1), jprune.keep_masks(MASKS)),
    "rigl": lambda: jprune.rigl(optax.adamw(0.1), 0.5, stop=1000),
    "multi_steps": lambda: optax.MultiSteps(
        optax.chain(optax.sgd(0.1), jprune.prune(0.5)), 3
    ),
    "outside": lambda: optax.chain(
        optax.contrib.schedule_free(optax.sgd(0.1), 0.1), jprune.prune(0.5)
    ),
}
WRONG: dict[str, Any] = {
    "before_momentum": (
        lambda: optax.chain(jprune.prune(0.5), optax.sgd(0.1, momentum=0.9)),
        ("TraceState", "EmptyState"),
    ),
    "before_the_rate": (
        lambda: optax.chain(
            optax.scale_by_adam(),
            jprune.keep_masks(MASKS),
            optax.scale_by_schedule(lambda count: -0.1),
        ),
        ("ScaleByScheduleState",),
    ),
    "before_decay": (
        lambda: optax.chain(
            optax.chain(optax.sgd(0.1), jprune.prune(CUBIC, every=100)),
            optax.add_decayed_weights(-0.1),
        ),
        ("EmptyState",),
    ),
    "rigl_before_the_rate": (
        lambda: optax.chain(
            jprune.rigl(optax.scale_by_adam(), 0.5, stop=9), optax.scale(-0.1)
        ),
        ("ScaleState",),
    ),
}


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.sweep(10)
def test_right_chains(name: str) -> None:
    report = jprune.check_chain(RIGHT[name](), PARAMS)
    assert report.zeros_persist
    assert not report.followers
    assert "Zeros persist: " in str(report)
    assert "right order" not in str(report)
    assert (report.around == ("MultiStepsState",)) == (name == "multi_steps")


@pytest.mark.sweep(2)
@pytest.mark.parametrize("name", WRONG)
def test_wrong_chains(name: str) -> None:
    make, followers = WRONG[name]
    report = jprune.check_chain(make(), PARAMS)
    assert not report.zeros_persist
    assert report.revived["kernel"] > 0
    assert set(report.followers) <= {*followers, "EmptyState", "ScaleState"}
    assert report.followers
    assert "do NOT persist" in str(report)
    assert "optax.chain(<all that" in str(report)


def test_lookahead_around_a_pruner_revives() -> None:
    inner = optax.chain(optax.sgd(0.1), jprune.prune(0.5))
    both = optax.LookaheadParams.init_synced(PARAMS)
    report = jprune.check_chain(optax.lookahead(inner, 3, 0.5), both)
    assert report.around == ("LookaheadState",)
    assert report.revived["kernel"] > 0


def test_extra_arguments_are_passed_on() -> None:
    tx = optax.chain(optax.polyak_sgd(), jprune.prune(0.5))
    with pytest.raises(TypeError, match="value"):
        jprune.check_chain(tx, PARAMS)
    assert jprune.check_chain(tx, PARAMS, value=1.0).zeros_persist


def test_nothing_known() -> None:
    slow = optax.MultiSteps(RIGHT["prune"](), 100)
    report = jprune.check_chain(slow, PARAMS)
    assert not report.zeros_persist
    assert "ask for more `steps`" in str(report)
    dense = optax.chain(optax.sgd(0.1), jprune.prune(0.0))
    assert "prune no weight" in str(jprune.check_chain(dense, PARAMS))


def test_refused() -> None:
    with pytest.raises(ValueError, match=r"`check_chain\(tx, .* got <function"):
        jprune.check_chain(optax.sgd, PARAMS)
    none = r"found no pruner \(`keep_masks`, `prune`, `rewire`\) among Sca"
    with pytest.raises(ValueError, match=none):
        jprune.check_chain(optax.adam(0.1), PARAMS)
    with pytest.raises(ValueError, match=r"chain\(steps=...\)` .* got 0"):
        jprune.check_chain(RIGHT["prune"](), PARAMS, steps=0)


def test_non_finite_parameters_are_named() -> None:
    poisoned = {**PARAMS, "bias": PARAMS["bias"].at[2].set(np.inf)}
    report = jprune.check_chain(RIGHT["keep_masks"](), poisoned)
    assert report.non_finite == ("bias",)
    assert "Not finite: bias." in str(report)
    assert report.zeros_persist


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.slow
def test_on_a_mesh(kind: AxisType) -> None:
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind,) * 2)
    tx = optax.chain(optax.adam(0.1), jprune.prune(0.5))
    with jax.set_mesh(mesh):
        placed = NamedSharding(mesh, P("x", "y"))
        params = {"w": jax.device_put(jnp.ones((8, 4)), placed)}
        assert jprune.check_chain(tx, params).zeros_persist
