"""Problems 1 to 3 on a linear model, against their solutions in float64."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jprune

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 6)) * np.linspace(0.5, 1.5, 6)
Y = X @ RNG.normal(size=(6, 3)) + 0.1 * RNG.normal(size=(40, 3))
HESSIAN = 2 * X.T @ X
RATE = 1 / np.linalg.eigvalsh(HESSIAN)[-1]
W0 = RNG.normal(size=(6, 3))


@pytest.fixture(autouse=True)
def _x64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def squared_error(w: Any) -> jax.Array:
    return jnp.sum(jnp.square(jnp.asarray(X) @ w - jnp.asarray(Y)))


def minimize(loss: Any, tx: Any, start: Any = W0, steps: int = 3000) -> Any:
    def step(carry: Any, _: None) -> Any:
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    params = jnp.asarray(start)
    assert params.dtype == jnp.float64
    run = jax.jit(lambda carry: jax.lax.scan(step, carry, length=steps)[0])
    return run((params, tx.init(params)))


def solve_ball(hessian: np.ndarray, linear: np.ndarray, radius: float) -> Any:
    """argmin <w, hessian w> / 2 - <linear, w> with |w|_F <= radius.

    Where the constraint binds, w = (hessian + mu)^-1 linear with the mu > 0 at
    which |w|_F = radius: the secular equation, solved by bisection.
    """
    values, vectors = np.linalg.eigh(hessian)
    turned = vectors.T @ linear

    def at(mu: float) -> np.ndarray:
        return turned / (values[:, None] + mu)

    low, high = 0.0, float(np.linalg.norm(linear)) / radius
    if np.linalg.norm(at(0.0)) <= radius:
        high = 0.0
    for _ in range(200):
        middle = (low + high) / 2
        if np.linalg.norm(at(middle)) > radius:
            low = middle
        else:
            high = middle
    return vectors @ at(high)


@pytest.mark.parametrize("strength", [0.0, 0.1, 10.0])
def test_problem_1_ridge(strength: float) -> None:
    """The fit with a penalty on |W|_F^2, under pruning that prunes nothing."""

    def loss(w: Any) -> jax.Array:
        return squared_error(w) + strength * jnp.sum(jnp.square(w))

    tx = optax.chain(optax.sgd(RATE / (1 + strength * RATE)), jprune.prune(0.0))
    got, _ = minimize(loss, tx)
    wanted = np.linalg.solve(X.T @ X + strength * np.eye(6), X.T @ Y)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-8)


@pytest.mark.parametrize("strength", [0.0, 10.0])
def test_problem_1_compressed(strength: float) -> None:
    """With masks, every output is a ridge problem on the inputs it keeps."""

    def loss(w: Any) -> jax.Array:
        return squared_error(w) + strength * jnp.sum(jnp.square(w))

    tx = optax.chain(optax.sgd(RATE / (1 + strength * RATE)), jprune.prune(0.5))
    got, state = minimize(loss, tx)
    masks = np.asarray(jprune.get_masks(state))
    assert masks.sum() == 9
    wanted = np.zeros((6, 3))
    for output, kept in enumerate(masks.T):
        x = X[:, kept]
        matrix = x.T @ x + strength * np.eye(kept.sum())
        wanted[kept, output] = np.linalg.solve(matrix, x.T @ Y[:, output])
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-8)
    assert not np.asarray(got)[~masks].any()


@pytest.mark.parametrize("part", [0.01, 0.3, 0.9, 2.0])
def test_problem_3_fit_in_the_ball(part: float) -> None:
    """Least squares with |W|_F <= r, by projected gradient descent."""
    free = np.linalg.solve(X.T @ X, X.T @ Y)
    radius = part * float(np.linalg.norm(free))
    ball = jprune.project_frobenius_ball(radius)
    got, _ = minimize(squared_error, optax.chain(optax.sgd(RATE), ball))
    wanted = solve_ball(HESSIAN, 2 * X.T @ Y, radius)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-8)
    size = float(np.linalg.norm(got))
    assert size == pytest.approx(min(radius, np.linalg.norm(free)), abs=1e-12)


@pytest.mark.parametrize("part", [0.3, 2.0])
def test_problem_2_compressed_in_the_ball(part: float) -> None:
    """Masks and the ball: least squares over what is kept, |W|_F <= r."""
    masks = np.asarray(jprune.find_masks(jnp.asarray(W0), 0.5))
    kept = masks.T.ravel()  # outputs one after the other
    hessian = np.kron(np.eye(3), HESSIAN)[np.ix_(kept, kept)]
    linear = (2 * X.T @ Y).T.reshape(-1, 1)[kept]
    free = np.linalg.solve(hessian, linear)
    radius = part * float(np.linalg.norm(free))
    tx = optax.chain(
        optax.sgd(RATE),
        jprune.keep_masks(jnp.asarray(masks)),
        jprune.project_frobenius_ball(radius),
    )
    got, _ = minimize(squared_error, tx)
    wanted = np.zeros((18, 1))
    wanted[kept] = solve_ball(hessian, linear, radius)
    np.testing.assert_allclose(got, wanted.reshape(3, 6).T, rtol=0, atol=1e-8)
    assert not np.asarray(got)[~masks].any()


def test_the_oracle_satisfies_the_optimality_conditions() -> None:
    """Inside: no gradient. On the sphere: the gradient points inwards."""
    linear = 2 * X.T @ Y
    free = float(np.linalg.norm(np.linalg.solve(HESSIAN, linear)))
    inside = solve_ball(HESSIAN, linear, 2 * free)
    np.testing.assert_allclose(HESSIAN @ inside, linear, atol=1e-9)
    w = solve_ball(HESSIAN, linear, free / 2)
    descent = linear - HESSIAN @ w
    mu = np.vdot(descent, w) / np.vdot(w, w)
    assert mu > 0
    np.testing.assert_allclose(descent, mu * w, atol=1e-9)
