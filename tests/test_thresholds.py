"""Thresholds, the balls of few entries and of the spectral norm.

Against closed forms in float64, and what their definitions promise: projections
end where they begin the second time, convex ones and proximal maps never take
points apart.
"""

from collections.abc import Callable
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
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jprune
from jprune import projections
from jprune.projections import (
    group_soft_threshold,
    l0_ball,
    nuclear,
    soft_threshold,
    spectral_ball,
)

DTYPES = ["float16", "bfloat16", "float32", "float64"]


def soft(x: np.ndarray, t: float) -> np.ndarray:
    return np.sign(x) * np.maximum(np.abs(x) - t, 0)


def group_soft(x: np.ndarray, t: float) -> np.ndarray:
    norms = np.linalg.norm(x, axis=0, keepdims=True)
    return x * np.maximum(1 - t / np.where(norms == 0, 1, norms), 0)


def singular(x: np.ndarray, change: Callable[[Any], Any]) -> np.ndarray:
    u, s, vh = np.linalg.svd(x, full_matrices=False)
    return (u * change(s)) @ vh


ORACLES: dict[str, tuple[Any, Callable[[np.ndarray, float], np.ndarray]]] = {
    "soft": (soft_threshold, soft),
    "group": (group_soft_threshold, group_soft),
    "nuclear": (
        nuclear,
        lambda x, t: singular(x, lambda s: np.maximum(s - t, 0)),
    ),
    "spectral": (
        spectral_ball,
        lambda x, r: singular(x, lambda s: np.minimum(s, r)),
    ),
}
JITTED = {
    name: jax.jit(lambda x, t, make=make: make(t)(x))
    for name, (make, _) in ORACLES.items()
}
JITTED["l0"] = jax.jit(lambda x, k: l0_ball(k)(x))
convex = pytest.mark.parametrize("name", list(ORACLES))


def test_golden_values() -> None:
    """Of the literature: group lasso on (3, 4) is (2.4, 3.2)."""

    @jax.jit
    def found(v: jax.Array) -> list[jax.Array]:
        return [
            group_soft_threshold(1.0)(v),
            group_soft_threshold(1.0)(v[:, None])[:, 0],
            group_soft_threshold(1.0, out_axis=0)(v[None])[0],
            nuclear(1.0)(v),  # a vector has one singular value
            spectral_ball(1.0)(v),
            soft_threshold(1.0)(v),
            l0_ball(1)(v),
        ]

    wanted = [[2.4, 3.2]] * 4 + [[0.6, 0.8], [2, 3], [0, 4]]
    np.testing.assert_allclose(found(jnp.array([3.0, 4])), wanted, rtol=1e-6)


@convex
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.sweep(4)
def test_oracles(name: str, dtype: str) -> None:
    make, oracle = ORACLES[name]
    rng = np.random.default_rng(0)
    with jax.enable_x64(dtype == "float64"):
        x = jnp.asarray(rng.normal(size=(9, 6)), dtype)
        eps = float(ml_dtypes.finfo(dtype).eps)
        computed = float(jnp.finfo(jnp.promote_types(dtype, "float32")).eps)
        wide = np.asarray(x).astype(np.float64)
        for t in (0.0, 0.5, 2.5, 4.0, 100.0)[name == "spectral" :]:
            got = make(t)({"x": x})["x"]
            assert got.dtype == dtype
            np.testing.assert_allclose(
                np.asarray(got).astype(np.float64),
                oracle(wide, t),
                rtol=eps,
                atol=20 * computed,
            )


@pytest.mark.sweep(2)
@convex
def test_zeros_are_exact_and_the_rest_is_untouched(name: str) -> None:
    make, _ = ORACLES[name]
    x = jnp.asarray(np.random.default_rng(1).normal(size=(5, 4)), jnp.float32)
    same = make(1e3)(x) if name == "spectral" else make(0.0)(x)
    if name == "nuclear":  # puts the matrix together again
        np.testing.assert_allclose(same, x, atol=1e-6)
    else:
        np.testing.assert_array_equal(same, x)
    if name != "spectral":
        assert not make(100.0)(x).any()
        np.testing.assert_array_equal(make(0.5)(jnp.zeros((3, 2))), 0)


@convex
@pytest.mark.parametrize("size", [1e38, 1e-30])
def test_no_overflow(name: str, size: float) -> None:
    """Where the squares leave the range of the dtype."""
    make, oracle = ORACLES[name]
    x = np.random.default_rng(2).uniform(-1, 1, size=(9, 6)) * size
    got = JITTED[name](jnp.asarray(x, jnp.float32), size / 2)
    wanted = oracle(x.astype(np.float32).astype(np.float64), size / 2)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=size * 1e-5)
    half = jnp.full((100, 2), 4e4, jnp.float16)  # |column| = 4e5
    landed = make(1e4)(half)
    wanted = oracle(np.asarray(half, np.float64), 1e4)
    np.testing.assert_allclose(landed, wanted, rtol=2e-3)


ENTRIES = st.floats(-8, 8, width=16)
MATRICES = hnp.arrays(np.float32, (4, 3), elements=ENTRIES)
few = hypothesis.settings(deadline=None, max_examples=25)


@few
@hypothesis.given(MATRICES, MATRICES, st.floats(0.125, 8, width=16))
def test_convex_ones_never_take_points_apart(
    x: np.ndarray, y: np.ndarray, t: float
) -> None:
    for name in ORACLES:
        a, b = (np.asarray(JITTED[name](z, t), np.float64) for z in (x, y))
        apart = np.linalg.norm(x.astype(np.float64) - y)
        assert np.linalg.norm(a - b) <= apart + 1e-5, name


@few
@hypothesis.given(MATRICES, st.floats(0.125, 8, width=16))
def test_spectral_ball_is_idempotent(x: np.ndarray, radius: float) -> None:
    once = JITTED["spectral"](x, radius)
    assert np.linalg.norm(once, 2) <= radius + 1e-5
    twice = JITTED["spectral"](once, radius)
    np.testing.assert_allclose(twice, once, atol=1e-5)


@few
@hypothesis.given(MATRICES, st.integers(0, 13))
def test_l0_ball_is_idempotent_and_nearest(x: np.ndarray, k: int) -> None:
    once = np.asarray(JITTED["l0"](x, k))
    assert np.count_nonzero(once) <= k
    np.testing.assert_array_equal(JITTED["l0"](once, k), once)
    lost = np.sort(np.abs(x), axis=None)[: max(x.size - k, 0)]
    np.testing.assert_array_equal(
        np.sort(np.abs(x - once), axis=None)[k:], lost[: x.size - k]
    )


@few
@hypothesis.given(MATRICES, st.floats(0.125, 8, width=16))
def test_thresholds_minimise_what_they_say(x: np.ndarray, t: float) -> None:
    """No point nearby has a lower penalty plus half the squared distance."""
    rng = np.random.default_rng(0)
    penalties: dict[str, Callable[[np.ndarray], Any]] = {
        "soft": lambda v: np.abs(v).sum(),
        "group": lambda v: np.linalg.norm(v, axis=0).sum(),
        "nuclear": lambda v: np.linalg.norm(v, "nuc"),
    }
    for name, penalty in penalties.items():

        def cost(v: np.ndarray, penalty: Any = penalty) -> Any:
            return 0.5 * np.sum((x - v) ** 2) + t * penalty(v)

        landed = np.asarray(JITTED[name](x, t), np.float64)
        least = cost(landed)
        for size in (1e-2, 1.0):
            other = landed + size * rng.normal(size=x.shape)
            assert least <= cost(other) + 1e-4, name
        assert least <= cost(np.zeros_like(landed)) + 1e-4
        assert least <= cost(x.astype(np.float64)) + 1e-4


@pytest.mark.parametrize(
    "make",
    [
        group_soft_threshold,
        nuclear,
        pytest.param(spectral_ball, marks=pytest.mark.slow),
    ],
)
def test_axes(make: Any) -> None:
    """Stacked layers are separate, kernels of convolutions are folded."""
    kernel = np.random.default_rng(3).normal(size=(3, 2, 4, 5))
    kernel = kernel.astype(np.float32)

    @jax.jit
    def found(kernel: jax.Array) -> list[jax.Array]:
        return [
            make(0.5)(kernel),
            make(0.5, out_axis=(2, -1))(kernel),
            make(0.5, batch_axis=0)(kernel)[2],
            make(0.5, out_axis=0, batch_axis=-1)(kernel)[..., 1],
            make(0.5, batch_axis=0)(kernel[0, 0])[1],  # of stacked biases
        ]

    @jax.jit
    def wanted(kernel: jax.Array) -> list[jax.Array]:
        plain = make(0.5)
        turned = kernel[..., 1].reshape(3, 8).T
        return [
            plain(kernel.reshape(24, 5)).reshape(kernel.shape),
            plain(kernel.reshape(6, 20)).reshape(kernel.shape),
            plain(kernel[2].reshape(8, 5)).reshape(2, 4, 5),
            plain(turned).T.reshape(3, 2, 4),
            plain(kernel[0, 0, 1]),
        ]

    for got, expected in zip(found(kernel), wanted(kernel), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    assert not np.allclose(found(kernel)[0], found(kernel)[1], atol=1e-3)


def test_leaves_of_any_shape() -> None:
    tree = {"none": np.zeros((0, 3)), "one": np.float32(-2), "hole": None}
    for name in projections.__all__:
        got = jax.jit(getattr(projections, name)(1))(tree)
        assert got["none"].shape == (0, 3)
        assert float(got["one"]) in (-1.0, -2.0)
        assert got["hole"] is None
        assert getattr(projections, name)(1)({}) == {}


def test_l0_ball_spans_the_tree() -> None:
    tree = {
        "a": jnp.array([3.0, -1.0], jnp.float16),
        "b": jnp.array([[-2.0, 2.0]], jnp.bfloat16),
    }
    got = l0_ball(2)(tree)  # of equals the first stays
    np.testing.assert_array_equal(got["a"], [3, 0])
    np.testing.assert_array_equal(got["b"].astype(jnp.float32), [[-2, 0]])
    assert got["b"].dtype == jnp.bfloat16
    jax.tree.map(np.testing.assert_array_equal, l0_ball(9)(tree), tree)
    assert not any(x.any() for x in jax.tree.leaves(l0_ball(0)(tree)))
    nan = l0_ball(1)(jnp.array([1.0, jnp.nan]))
    np.testing.assert_array_equal(nan, [0, jnp.nan])


def test_nan_stays_visible() -> None:
    x = jnp.array([[1.0, jnp.nan], [2.0, 3.0]])
    for name in ORACLES:
        assert np.isnan(JITTED[name](x, 1.0)[0, 1])


@pytest.mark.parametrize(
    ("make", "bad"),
    [
        (soft_threshold, -1.0),
        (group_soft_threshold, float("nan")),
        (nuclear, "1"),
        (nuclear, [1.0, 2.0]),
        (spectral_ball, 0.0),
        (l0_ball, -1),
        (l0_ball, 2.5),
        (l0_ball, float("nan")),
    ],
)
def test_bad_numbers_are_refused(make: Any, bad: Any) -> None:
    with pytest.raises(
        ValueError, match=rf"^`{make.__name__}\(.*\)` must be a"
    ):
        make(bad)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: nuclear(1.0, out_axis=2),
            r"`nuclear\(out_axis=...\)`: axis 2 is out of range for 'a/kernel'",
        ),
        (
            lambda: group_soft_threshold(1.0, batch_axis=-2),
            r"threshold\(batch_axis=...\)`: axis -2 .* 'a/bias' with 1 axes",
        ),
        (
            lambda: nuclear(1.0, out_axis=(1, -1)),
            r"`nuclear\(out_axis=...\)`: axis -1 of 'a/kernel' is already",
        ),
        (
            lambda: nuclear(1.0, out_axis=0.5),  # type: ignore[arg-type]
            r"`nuclear\(out_axis=...\)` must be an int or a sequence of ints",
        ),
        (
            lambda: spectral_ball(1.0, out_axis=(0, 1), batch_axis=0),
            r"share an axis of 'a/kernel' with 3 axes",
        ),
    ],
)
def test_bad_axes_are_refused_in_init(make: Any, message: str) -> None:
    ndim = 3 if "share" in message else 2
    params = {"a": {"kernel": jnp.ones((2, 3, 4)[:ndim]), "bias": jnp.ones(4)}}
    with pytest.raises(ValueError, match=message):
        jprune.project(make()).init(params)


def test_a_traced_number_of_the_wrong_kind() -> None:
    with pytest.raises(ValueError, match=r"`l0_ball\(max_nonzero\)` must be"):
        jax.jit(lambda k: l0_ball(k)(jnp.ones(3)))(1.5)


@pytest.mark.parametrize(
    "name", [*ORACLES, pytest.param("l0", marks=pytest.mark.slow)]
)
def test_vmap_over_the_number(name: str) -> None:
    x = jnp.asarray(np.random.default_rng(4).normal(size=(4, 3)), jnp.float32)
    numbers = jnp.array([1, 2, 5]) if name == "l0" else jnp.array([0.1, 1, 9])
    together = jax.jit(jax.vmap(JITTED[name], in_axes=(None, 0)))(x, numbers)
    for got, number in zip(together, numbers, strict=True):
        np.testing.assert_allclose(got, JITTED[name](x, number), atol=1e-5)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize(
    "name", [*ORACLES, pytest.param("l0", marks=pytest.mark.slow)]
)
@pytest.mark.sweep(3)
def test_meshes(name: str, kind: AxisType) -> None:
    x = jnp.asarray(np.random.default_rng(5).normal(size=(16, 8)), jnp.float32)
    number = 3 if name == "l0" else 0.5
    wanted = JITTED[name](x, number)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        for spec in (P("x", None), P(None, "x")):
            sharded = jax.device_put(x, NamedSharding(mesh, spec))
            got = JITTED[name](sharded, number)
            np.testing.assert_allclose(got, wanted, atol=1e-5)
            if kind == AxisType.Explicit:
                assert got.sharding.spec == spec
        np.testing.assert_allclose(JITTED[name](x, number), wanted, atol=1e-5)


@pytest.mark.parametrize("name", ["nuclear", "spectral"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_diverged_matrix_stays_visible(name: str, bad: float) -> None:
    """LAPACK does not return from infinity; other matrices go on."""
    x = np.stack([np.diag([3.0, 0.5])] * 2).astype(np.float32)
    x[0, 0, 1] = bad
    projection = ORACLES[name][0]
    got = projection(1.0, batch_axis=0)(x)
    assert np.isnan(got[0]).all()
    np.testing.assert_allclose(got[1], projection(1.0)(x[1]), atol=1e-6)


def test_as_transforms() -> None:
    """Zeros are exact after the update, in 16 bits too; biases by ``where``."""
    params = {
        "kernel": jnp.asarray([[3.0, 0.1], [4.0, 0.2]], jnp.bfloat16),
        "bias": jnp.asarray([0.1, 0.2], jnp.bfloat16),
    }
    zeros = jax.tree.map(jnp.zeros_like, params)
    for projection in (
        soft_threshold(0.5),
        group_soft_threshold(0.5),
        l0_ball(2),
    ):
        tx = jprune.project(projection, where="kernel")
        updates, _ = tx.update(zeros, tx.init(params), params)
        landed = optax.apply_updates(params, updates)
        assert landed["kernel"].astype(bool).tolist() == [[True, False]] * 2
        np.testing.assert_array_equal(updates["bias"], zeros["bias"])


def test_ista_finds_the_lasso() -> None:
    """sgd, then the threshold rate * penalty: the conditions of optimality."""
    rng = np.random.default_rng(6)
    x, w = rng.normal(size=(60, 12)), np.zeros(12)
    w[:3] = [2.0, -3.0, 1.5]
    y, penalty = x @ w + 0.1 * rng.normal(size=60), 30.0
    rate = 1 / np.linalg.norm(x, 2) ** 2
    tx = optax.chain(
        optax.sgd(rate), jprune.project(soft_threshold(rate * penalty))
    )
    with jax.enable_x64(True):

        def step(carry: Any, _: None) -> Any:
            w, state = carry
            grads = jnp.asarray(x).T @ (jnp.asarray(x) @ w - jnp.asarray(y))
            updates, state = tx.update(grads, state, w)
            return (optax.apply_updates(w, updates), state), None

        start = jnp.zeros(12)
        run = jax.jit(lambda c: jax.lax.scan(step, c, length=2000)[0])
        got = np.asarray(run((start, tx.init(start)))[0])
    assert np.flatnonzero(got).tolist() == [0, 1, 2]
    slope = x.T @ (y - x @ got)
    np.testing.assert_allclose(slope[:3], penalty * np.sign(got[:3]), rtol=1e-9)
    assert np.all(np.abs(slope[3:]) < penalty)
