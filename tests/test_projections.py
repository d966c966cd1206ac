"""The Frobenius ball: against a float64 oracle, and what holds for any ball."""

from typing import Any

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

import jprune
from jprune.projections import frobenius_ball

DTYPES = ["float16", "bfloat16", "float32", "float64"]


def norm(*arrays: Any) -> float:
    """The Frobenius norm of all entries concatenate_many, beyond float64."""
    wide = [np.asarray(x).astype(np.longdouble).ravel() for x in arrays]
    return float(np.sqrt(np.sum(np.square(np.concatenate(wide)))))


def oracle(x: Any, radius: float) -> np.ndarray:
    x = np.asarray(x).astype(np.float64)
    return x * min(1.0, radius / norm(x))


@jax.jit
def update(p: jax.Array, u: jax.Array, radius: jax.Array) -> jax.Array:
    tx = jprune.project_frobenius_ball(radius)
    return tx.update(u, tx.init(p), p)[0]


@jax.jit
def ball(x: jax.Array, radius: jax.Array) -> jax.Array:
    return frobenius_ball(radius)(x)


def check_update(p: jax.Array, u: jax.Array, relative: float) -> None:
    """The two bounds of promise 6, for one update of one leaf."""
    wide = jnp.promote_types(p.dtype, jnp.float32)
    radius = np.asarray(relative * norm(p), wide)
    landed = optax.apply_updates(p, update(p, u, radius))
    assert landed.dtype == p.dtype
    start = np.asarray(p).astype(np.float64)
    wanted = oracle(start + np.asarray(u).astype(np.float64), float(radius))
    bound = float(ml_dtypes.finfo(p.dtype).eps) * (norm(p) + float(radius))
    assert norm(np.asarray(landed).astype(np.float64) - wanted) <= bound
    assert norm(landed) <= radius + bound


@pytest.mark.parametrize("size", [1, 7, 1000, 100_003])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.sweep(3)
def test_error_of_an_update(dtype: str, size: int) -> None:
    rng = np.random.default_rng(size)
    with jax.enable_x64(dtype == "float64"):
        p = jnp.asarray(rng.normal(size=size), dtype)
        u = jnp.asarray(0.1 * rng.normal(size=size), dtype)
        for relative in (1e-3, 0.1, 0.9, 1.0, 1.1, 10.0):
            check_update(p, u, relative)


@pytest.mark.parametrize(
    "shape",
    [
        (1000, 1000),
        pytest.param((1_000_000,), marks=pytest.mark.slow),
        pytest.param((1_000_000, 1), marks=pytest.mark.slow),
        pytest.param((1, 1_000_000), marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.sweep(8)
def test_error_of_a_large_leaf(dtype: str, shape: Any) -> None:
    values = np.random.default_rng(0).normal(size=shape)
    one_large = values.copy()
    one_large.flat[0] = 1e3
    with jax.enable_x64(dtype == "float64"):
        for each in (values, one_large, np.full(shape, 0.1)):
            p = jnp.asarray(each, dtype)
            check_update(p, -p / 8, 1e-3)
            check_update(p, -p / 8, 0.5)


def test_article_example() -> None:
    """(3, 4) lands on (.6, .8) of the unit ball, as a vector and as a tree."""
    got = frobenius_ball(1.0)(jnp.array([3.0, 4.0]))
    np.testing.assert_allclose(got, [0.6, 0.8], rtol=1e-7)
    tree = {"w": jnp.array([[3.0]]), "b": jnp.array([4.0])}
    got = frobenius_ball(1.0)(tree)
    np.testing.assert_allclose(got["w"], [[0.6]], rtol=1e-7)
    np.testing.assert_allclose(got["b"], [0.8], rtol=1e-7)


VALUES = st.floats(-1e6, 1e6, width=32)
ARRAYS = hnp.arrays(np.float32, 12, elements=VALUES)
RADII = st.floats(0.0009765625, 1e4, width=32)


@hypothesis.settings(deadline=None, max_examples=30)
@hypothesis.given(x=ARRAYS, radius=RADII)
@hypothesis.example(
    x=np.array([5.25478e5, 9.74059e5] + 10 * [8.5322214e-33], np.float32),
    radius=3.0,
)
def test_idempotent(x: np.ndarray, radius: float) -> None:
    once = ball(x, radius)
    twice = ball(once, radius)
    eps = float(np.finfo(np.float32).eps)
    assert norm(once) <= radius * (1 + 4 * eps)
    # What is this small underflows, where it is scaled as the largest entry is.
    tiny = 4 * float(np.finfo(np.float32).tiny) * max(1.0, radius)
    np.testing.assert_allclose(twice, once, rtol=4 * eps, atol=tiny)


@hypothesis.settings(deadline=None, max_examples=30)
@hypothesis.given(x=ARRAYS, y=ARRAYS, radius=RADII)
def test_non_expansive(x: np.ndarray, y: np.ndarray, radius: float) -> None:
    before = norm(x.astype(np.float64) - y)
    after = norm(np.asarray(ball(x, radius), np.float64) - ball(y, radius))
    assert after <= before + 4 * np.finfo(np.float32).eps * radius


@hypothesis.settings(deadline=None, max_examples=30)
@hypothesis.given(x=ARRAYS, radius=RADII)
def test_identity_inside(x: np.ndarray, radius: float) -> None:
    got = np.asarray(ball(x, radius))
    if norm(x) <= radius * (1 - 1e-6):
        np.testing.assert_array_equal(got.view(np.uint32), x.view(np.uint32))
    elif norm(x) > radius * (1 + 1e-6):
        assert (got != x).any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.sweep(2)
@pytest.mark.optimized
def test_updates_inside_keep_their_bits(dtype: str) -> None:
    rng = np.random.default_rng(0)
    with jax.enable_x64(dtype == "float64"):
        p = jnp.asarray(rng.normal(size=(50, 20)), dtype)
        u = jnp.asarray(1e-3 * rng.normal(size=(50, 20)), dtype)
        u = u.at[0, 0].set(-0.0)
        tx = jprune.project_frobenius_ball(1e3)
        updates, _ = jax.jit(tx.update)(u, tx.init(p), p)
        assert updates.dtype == u.dtype
        assert np.asarray(updates).tobytes() == np.asarray(u).tobytes()


def test_no_overflow_in_float16() -> None:
    x = jnp.full((100,), 49.0, jnp.float16)  # norm 490, its square 240,100
    got = frobenius_ball(10.0)(x)
    assert not optax.projections.projection_l2_ball(x, 10.0).any(), "no reason"
    np.testing.assert_allclose(got, np.ones(100), rtol=1e-3)


@pytest.mark.parametrize("largest", [3e38, 1e20, 1e-20, 1e-30])
@pytest.mark.parametrize("relative", [1e-3, 0.5])
def test_no_overflow_in_float32(largest: float, relative: float) -> None:
    values = np.linspace(-largest, largest, 9).astype(np.float32)
    radius = relative * norm(values)
    got = frobenius_ball(radius)(values)
    wanted = oracle(values, radius)
    np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-45)


def test_radius_far_below_the_norm() -> None:
    """Their ratio is subnormal, which backends take for 0; the result isn't."""
    got = frobenius_ball(5.0)(jnp.array([3e38, -4e37], jnp.bfloat16))
    np.testing.assert_allclose(norm(np.asarray(got, np.float64)), 5, rtol=0.01)


def test_infinite_radius() -> None:
    x = jnp.full((3,), 3e38)
    np.testing.assert_array_equal(frobenius_ball(float("inf"))(x), x)


def test_nan_and_infinity_stay_visible() -> None:
    assert np.isnan(ball(jnp.array([1.0, jnp.nan]), 0.5)).all()
    assert not np.isfinite(ball(jnp.array([1.0, jnp.inf]), 0.5)[1])
    tx = jprune.project_frobenius_ball(1.0)
    p = jnp.ones(3)
    u = jnp.array([0.0, jnp.nan, 0.0])
    updates, _ = tx.update(u, tx.init(p), p)
    assert np.isnan(optax.apply_updates(p, updates)[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.sweep(2)
def test_zero_tree(dtype: str) -> None:
    with jax.enable_x64(dtype == "float64"):
        tree = {"w": jnp.zeros((2, 3), dtype), "none": jnp.zeros((0,), dtype)}
        got = frobenius_ball(1e-3)(tree)
        assert not got["w"].any()
        assert got["w"].dtype == dtype
    assert frobenius_ball(1.0)({}) == {}


def test_per_leaf() -> None:
    params = {"w": jnp.array([[3.0, 4.0]]), "b": jnp.array([0.0, 0.5])}
    tx = jprune.project_frobenius_ball(1.0, per="leaf")
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zeros, tx.init(params), params)
    landed = optax.apply_updates(params, updates)
    np.testing.assert_allclose(landed["w"], [[0.6, 0.8]], rtol=1e-6)
    np.testing.assert_array_equal(landed["b"], params["b"])
    np.testing.assert_array_equal(updates["b"], zeros["b"])


def test_where() -> None:
    params = {"w": jnp.array([[3.0, 4.0]]), "b": jnp.array([100.0])}
    tx = jprune.project_frobenius_ball(1.0, where="^w$")
    grads = jax.tree.map(jnp.ones_like, params)
    updates, _ = tx.update(grads, tx.init(params), params)
    landed = optax.apply_updates(params, updates)
    assert norm(landed["w"]) == pytest.approx(1.0, rel=1e-6)
    np.testing.assert_array_equal(updates["b"], grads["b"])


def test_every() -> None:
    tx = jprune.project(frobenius_ball(1.0), every=3)
    params = jnp.array([3.0, 4.0])
    state = tx.init(params)
    norms = []
    for _ in range(5):
        updates, state = tx.update(jnp.array([0.3, 0.4]), state, params)
        params = optax.apply_updates(params, updates)
        norms.append(norm(params))
    np.testing.assert_allclose(norms, [1, 1.5, 2, 1, 1.5], rtol=1e-6)


def test_gradient_is_finite_at_zero() -> None:
    def square(x: jax.Array) -> jax.Array:
        return jnp.sum(frobenius_ball(1.0)(x) * jnp.array([1.0, 2.0]))

    np.testing.assert_array_equal(jax.grad(square)(jnp.zeros(2)), [1.0, 2.0])
    np.testing.assert_array_equal(
        jax.grad(square)(jnp.array([0.3, 0.4])), [1.0, 2.0]
    )


def test_gradient_outside() -> None:
    x, v = jnp.array([3.0, 4.0]), jnp.array([1.0, 2.0])
    got = jax.grad(lambda x: jnp.vdot(frobenius_ball(1.0)(x), v))(x)
    unit = np.array([0.6, 0.8])  # d(x/|x|) = (I - unit unit^T) / |x|
    wanted = (np.asarray(v) - unit * (unit @ np.asarray(v))) / 5
    np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-7)


def test_traced_radius_and_vmap() -> None:
    x = jnp.array([3.0, 4.0])
    got = jax.jit(jax.vmap(lambda r: frobenius_ball(r)(x)))(
        jnp.array([1.0, 2.5, 10.0])
    )
    np.testing.assert_allclose(
        got, np.array([[0.6, 0.8], [1.5, 2], [3, 4]]), rtol=1e-6
    )


def test_mixed_dtypes_share_one_norm() -> None:
    tree = {
        "a": jnp.array([3.0], jnp.float16),
        "b": jnp.array([4.0], jnp.bfloat16),
    }
    got = frobenius_ball(2.5)(tree)
    assert {n: x.dtype for n, x in got.items()} == {
        n: x.dtype for n, x in tree.items()
    }
    assert float(got["a"][0]) == 1.5
    assert float(got["b"][0]) == 2.0
