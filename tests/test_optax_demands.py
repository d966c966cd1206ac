"""What optax demands of an optimizer (``optax/contrib/_common_test.py``).

For chains with a pruner that prunes nothing and a ball that holds everything,
so that the chains must also do what the optimizer does without them.
"""

import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jprune

LAST: dict[str, Callable[[], Any]] = {
    "prune": lambda: jprune.prune(0.0, where=lambda p: True),
    "ball": lambda: jprune.project_frobenius_ball(1e3),
}
each_last = pytest.mark.parametrize("last", LAST)
INNER: dict[str, Callable[[], Any]] = {
    "sgd": lambda: optax.sgd(1e-2, momentum=0.9),
    "adam": lambda: optax.adam(2e-2),
}


def chain(inner: str, last: str) -> Any:
    return optax.chain(INNER[inner](), LAST[last]())


def square(params: Any, target: Any) -> jax.Array:
    return optax.tree.norm(optax.tree.sub(params, target), squared=True)


def valley(params: jax.Array) -> jax.Array:
    """A bent valley, flat along its floor, with its minimum at (1, 1)."""
    return (1 - params[0]) ** 2 + 10 * (params[1] - params[0] ** 2) ** 2


VECTOR = jnp.array([1.0, -1.0, 3.0])
MATRIX = jnp.array([[3.0, -2.0], [1.0, 4.0]])
TARGETS: dict[str, tuple[Any, Any, Callable[[Any], jax.Array]]] = {
    "vector": (10 - VECTOR, VECTOR, lambda p: square(p, VECTOR)),
    "valley": (jnp.zeros(2), jnp.ones(2), valley),
    "matrix": (0 * MATRIX, MATRIX, lambda p: square(p, MATRIX)),
    "both": (
        (0 * VECTOR, 0 * MATRIX),
        (VECTOR, MATRIX),
        lambda p: square(p, (VECTOR, MATRIX)),
    ),
}


def make_step(tx: Any, loss: Any, **extra_args: Any) -> Any:
    @jax.jit
    def step(params: Any, state: Any) -> Any:
        grads = jax.grad(loss)(params)
        updates, state = tx.update(grads, state, params, **extra_args)
        return optax.apply_updates(params, updates), state

    return step


@each_last
@pytest.mark.parametrize(
    ("target", "inner"),
    [("valley", "adam"), ("both", "adam"), ("matrix", "sgd")],
)
def test_converges(target: str, inner: str, last: str) -> None:
    params, wanted, loss = TARGETS[target]
    tx = chain(inner, last)
    step = make_step(tx, loss)

    def run(carry: Any, _: None) -> Any:
        return step(*carry), None

    carry = (params, tx.init(params))
    (params, _), _ = jax.jit(lambda c: jax.lax.scan(run, c, length=3000))(carry)
    for got, leaf in zip(
        jax.tree.leaves(params), jax.tree.leaves(wanted), strict=True
    ):
        np.testing.assert_allclose(got, leaf, atol=1e-3)


@each_last
def test_unknown_extra_arguments(last: str) -> None:
    params, _, loss = TARGETS["matrix"]
    tx = chain("adam", last)
    plain = make_step(tx, loss)(params, tx.init(params))
    extra = make_step(tx, loss, nobody_knows_this=1)(params, tx.init(params))
    jax.tree.map(np.testing.assert_array_equal, plain, extra)


@each_last
def test_second_call_does_not_compile(
    last: str, caplog: pytest.LogCaptureFixture
) -> None:
    params, _, loss = TARGETS["both"]
    tx = chain("adam", last)
    step = make_step(tx, loss)
    carry = step(params, tx.init(params))
    with jax.log_compiles(), caplog.at_level(logging.WARNING, "jax"):
        step(*carry)
        assert not caplog.records
        make_step(tx, loss)(*carry)  # what a compilation looks like
        assert caplog.records


@each_last
def test_inject_hyperparams(last: str) -> None:
    def make(learning_rate: Any, amount: Any) -> Any:
        if last == "prune":
            link = jprune.prune(amount, where=lambda p: True)
        else:
            link = jprune.project_frobenius_ball(amount)
        return optax.chain(optax.adam(learning_rate), link)

    amount = 0.25 if last == "prune" else 1e3
    plain = make(1e-2, amount)
    injected = optax.inject_hyperparams(make)(learning_rate=1e-2, amount=amount)
    params = [-jnp.ones((2, 3)), jnp.arange(20.0).reshape(2, 5, 2)]
    grads = [jnp.ones((2, 3)), -jnp.ones((2, 5, 2))]
    state = jax.jit(plain.init)(params)
    wanted, new = jax.jit(plain.update)(grads, state, params)
    state = jax.jit(injected.init)(params)
    got, new_injected = jax.jit(injected.update)(grads, state, params)
    for a, b in zip(
        jax.tree.leaves((got, new_injected.inner_state)),
        jax.tree.leaves((wanted, new)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@each_last
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_updates_keep_their_dtype(dtype: str, last: str) -> None:
    params = jnp.array([1.0, 2.0], dtype)
    tx = chain("adam", last)
    updates, state = jax.jit(tx.update)(2 * params, tx.init(params), params)
    assert updates.dtype == dtype
    before, after = (
        jax.tree.map(jnp.result_type, s) for s in (tx.init(params), state)
    )
    assert before == after


@each_last
def test_gradient_accumulation(last: str) -> None:
    params = jnp.array([1.0, 2.0])
    tx = optax.MultiSteps(chain("sgd", last), every_k_schedule=3)
    bare = INNER["sgd"]()
    wanted, _ = bare.update(2 * params, bare.init(params), params)
    update, state = jax.jit(tx.update), tx.init(params)
    for step in range(3):
        updates, state = update((step + 1) * params, state, params)
        if step < 2:
            np.testing.assert_array_equal(updates, jnp.zeros(2))
    np.testing.assert_allclose(updates, wanted, rtol=1e-6)


@each_last
def test_map_params(last: str) -> None:
    params, _, _ = TARGETS["both"]
    tx = chain("adam", last)
    state = tx.init(params)
    same = optax.tree.map_params(tx, lambda leaf: leaf, state)
    jax.tree.map(np.testing.assert_array_equal, same, state)
    shapes = optax.tree.map_params(
        tx, lambda leaf, p: leaf.shape == p.shape, state, params
    )
    flags = [x for x in jax.tree.leaves(shapes) if isinstance(x, bool)]
    assert all(flags)
    assert len(flags) == (6 if last == "prune" else 4)  # moments, and masks


@each_last
def test_state_is_stable_through_cond(last: str) -> None:
    params, _, loss = TARGETS["both"]
    tx = chain("adam", last)

    @jax.jit
    def step(params: Any, state: Any, go: Any) -> Any:
        grads = jax.grad(loss)(params)
        return jax.lax.cond(
            go,
            lambda: tx.update(grads, state, params),
            lambda: (jax.tree.map(jnp.zeros_like, params), state),
        )

    for go in (True, False):
        updates, _ = step(params, tx.init(params), go)
        moved = any(bool(u.any()) for u in jax.tree.leaves(updates))
        assert moved == go


@pytest.mark.sweep(2)
@each_last
@pytest.mark.parametrize("inner", INNER)
def test_same_updates_as_without(inner: str, last: str) -> None:
    params, _, loss = TARGETS["both"]
    tx, bare = chain(inner, last), INNER[inner]()
    update, bare_update = jax.jit(tx.update), jax.jit(bare.update)
    state, bare_state = tx.init(params), bare.init(params)
    for _ in range(3):
        grads = jax.grad(loss)(params)
        updates, state = update(grads, state, params)
        wanted, bare_state = bare_update(grads, bare_state, params)
        jax.tree.map(np.testing.assert_array_equal, updates, wanted)
        params = optax.apply_updates(params, updates)


@pytest.mark.slow
@each_last
def test_learning_rate_schedule(last: str) -> None:
    params, _, loss = TARGETS["matrix"]
    ends = []
    for rate in (1e-2, optax.constant_schedule(1e-2)):
        tx = optax.chain(optax.adam(rate), LAST[last]())
        step, carry = make_step(tx, loss), (params, tx.init(params))
        for _ in range(5):
            carry = step(*carry)
        ends.append(carry[0])
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-6)
