"""Solvers and refit against NumPy, in float64."""

import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jprune
from jprune import calibrate, grids, one_shot, refit, solvers
from jprune.calibration.solvers.least_squares import fitted, fitted_rows
from jprune.calibration.solvers.obs import backward
from jprune.calibration.solvers.sparsegpt import swept
from jprune.solvers import Problem


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def numbers(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape)


def problem(rows: int = 20, many: int = 6, outs: int = 3, seed: int = 0) -> Any:
    """Correlated inputs [M, K], a kernel [K, N], and their problem."""
    x = numbers(rows, many, seed=seed) @ numbers(many, many, seed=seed + 1)
    w = numbers(many, outs, seed=seed + 2)
    return x, w, given(x.T @ x, w, rows)


def given(gram: Any, w: Any, rows: int = 20) -> Problem:
    gram, w = jnp.asarray(gram, float)[None], jnp.asarray(w, float)[None]
    return Problem(w, gram, gram @ w, jnp.full(1, float(rows)))


class Choice:
    """The best scores of a matrix stay, or of each group of rows of it."""

    together = None

    def __init__(self, lost: int, by_rows: bool = False) -> None:
        self.lost, self.by_rows = lost, by_rows

    def __call__(
        self, scores: Any, share: float = 1.0, rows: Any = None
    ) -> Any:
        lost = round(share * self.lost)
        order = np.argsort(np.asarray(scores), axis=None, kind="stable")
        mask = np.ones(scores.size, bool)
        mask[order[:lost]] = False
        return jnp.asarray(mask.reshape(scores.shape))


def loss(x: Any, w: Any, new: Any) -> float:
    return float(np.sum((x @ (np.asarray(new) - w)) ** 2))


GRAM = np.array([[2.0, 1.0], [1.0, 2.0]])


def test_two_weights_by_hand() -> None:
    """Removing the first leaves (0, 1.5), at a loss of .75; then both: 3."""
    one = given(GRAM, np.ones((2, 1)))

    def half(new: Any) -> float:
        d = np.asarray(new)[0, :, 0] - 1
        return 0.5 * d @ GRAM @ d

    first = jnp.array([[[False], [True]]])
    new = fitted(one, first, 0.0)
    np.testing.assert_allclose(new[0, :, 0], [0, 1.5])
    np.testing.assert_allclose(half(new), 0.75)
    np.testing.assert_allclose(half(fitted(one, first & False, 0.0)), 3)
    new, _ = swept(one, None, None, damping=0.0, mask=first)
    np.testing.assert_allclose(new[0, :, 0], [0, 1.5])
    # In column order the second has nobody after it to take over.
    second = jnp.array([[[True], [False]]])
    new, _ = swept(one, None, None, damping=0.0, mask=second)
    np.testing.assert_allclose(new[0, :, 0], [1, 0])
    np.testing.assert_allclose(half(new), 1)
    np.testing.assert_allclose(half(fitted(one, second, 0.0)), 0.75)


def sweep(gram: Any, w: Any, mask: Any, grid: Any = None) -> Any:
    """Column by column, the inverse downdated as OBS says; and 1/2 sum E^2."""
    w, inverse, total = w.copy(), np.linalg.inv(gram), 0.0
    for i in range(len(w)):
        new = np.where(mask[i], w[i], 0.0)
        if grid is not None:
            step, most = np.asarray(grid)[i, :, 0], np.asarray(grid)[i, :, 1]
            new = np.clip(np.round(new / step), -most, most) * step
        error = (w[i] - new) / inverse[0, 0]
        total += 0.5 * np.sum(error * (w[i] - new))
        w[i:] -= np.outer(inverse[:, 0], error)
        w[i] = new
        inverse = (
            inverse - np.outer(inverse[:, 0], inverse[0]) / inverse[0, 0]
        )[1:, 1:]
    return w, total


@pytest.mark.sweep(2)
@pytest.mark.parametrize("grid", [None, grids.integer(4), grids.integer(3, 2)])
@pytest.mark.parametrize("block", [1, 4, 128])
def test_a_sweep_is_obs_column_by_column(grid: Any, block: int) -> None:
    x, w, one = problem(many=7)
    mask = numbers(7, 3, seed=8) > -0.3
    gram = x.T @ x + 0.01 * np.mean(np.diag(x.T @ x)) * np.eye(7)
    scales = None if grid is None else grid.scales(one.kernel)
    wanted, half = sweep(gram, w, mask, None if scales is None else scales[0])
    new, same = swept(one, None, scales, block, 0.01, jnp.asarray(mask)[None])
    np.testing.assert_allclose(new[0], wanted, atol=1e-9)
    np.testing.assert_array_equal(same[0], mask)
    change = np.asarray(new[0]) - w
    np.testing.assert_allclose(half, 0.5 * np.trace(change.T @ gram @ change))
    assert not np.any(np.asarray(new[0])[~mask])


def test_a_sweep_chooses_by_the_loss_to_come() -> None:
    """w^2 over the diagonal of the inverse of what is still to come."""
    x, w, one = problem()
    gram = x.T @ x + 0.01 * np.mean(np.diag(x.T @ x)) * np.eye(6)
    later = [np.linalg.inv(gram[i:, i:])[0, 0] for i in range(6)]
    scores = w**2 / np.array(later)[:, None]
    cut = np.sort(scores, axis=None)[9]
    new, mask = solvers.sparsegpt().solve(one, Choice(9))
    np.testing.assert_array_equal(mask[0], scores >= cut)
    np.testing.assert_allclose(new[0], sweep(gram, w, scores >= cut)[0])


@pytest.mark.sweep(4)
@pytest.mark.parametrize("block", [3, 8])
@pytest.mark.parametrize("window", [1, 3])
def test_two_of_four_are_chosen_when_they_are_come_to(
    block: int, window: int
) -> None:
    """On weights that those before have changed, each four by itself."""
    many = 8 * window
    x, w, _ = problem(rows=90, many=many)
    x[:, 2] = 0  # never active: goes first
    # Four inputs at one place of the window follow each other in the sweep.
    places = np.arange(many).reshape(2, 4, window)
    order = places.transpose(0, 2, 1).ravel()
    gram = (x.T @ x)[np.ix_(order, order)]
    gram += 0.01 * np.mean(np.diag(gram)) * np.eye(many)
    now, mask = w[order], np.ones(w.shape, bool)
    inverse = np.linalg.inv(gram)
    upper = np.linalg.cholesky(inverse).T
    for i in range(many):
        if i % 4 == 0:
            on = np.diag(upper)[i : i + 4].copy()
            on[order[i : i + 4] == 2] = np.inf
            scores = (now[i : i + 4] / on[:, None]) ** 2
            first = np.argsort(scores, axis=0, kind="stable")[:2]
            np.put_along_axis(mask[i : i + 4], first, False, 0)
        error = np.where(mask[i], 0, now[i]) / upper[i, i]
        now[i:] -= np.outer(upper[i, i:], error)
    back = np.argsort(order)

    def fn(p: Any, x: Any) -> Any:
        return x @ p.transpose(1, 0, 2).reshape(many, 3)

    result = one_shot(
        fn,
        jnp.asarray(w.reshape(8, window, 3).transpose(1, 0, 2)),
        [x],
        0.5,
        solver=solvers.sparsegpt(block=block),
        structure=jprune.structures.n_m(2, 4, in_axis=1, out_axis=2),
    )

    def seen(p: Any) -> Any:
        return np.asarray(p).transpose(1, 0, 2).reshape(many, 3)

    np.testing.assert_array_equal(seen(result.masks), mask[back])
    np.testing.assert_allclose(seen(result.params), now[back], atol=1e-9)


def plain_admm(gram: Any, w: Any, lost: int, steps: int, polish: int) -> Any:
    scale = np.sqrt(np.diag(gram))[:, None]
    unit = gram / (scale * scale.T) + 0.1 * np.eye(len(w))
    start = w * scale
    right, inverse = unit @ start, np.linalg.inv(unit + np.eye(len(w)))
    v, u = start, np.zeros_like(w)
    for t in range(steps + polish):
        if t < steps:
            share = 1 - (1 - (t + 1) / steps) ** 3
            order = np.argsort(np.abs(v + u), axis=None, kind="stable")
            mask = np.ones(w.size, bool)
            mask[order[: round(share * lost)]] = False
            mask = mask.reshape(w.shape)
        z = np.where(mask, v + u, 0)
        u = u + v - z
        v = inverse @ (right + z - u)
    return mask


def ridge_fit(gram: Any, right: Any, w: Any, mask: Any, ridge: float) -> Any:
    """Normal equations of what is kept, column by column."""
    more = ridge * np.mean(np.diag(gram)) * np.eye(len(w))
    new = np.zeros_like(w)
    for n in range(w.shape[1]):
        on = mask[:, n]
        a, b = (gram + more)[np.ix_(on, on)], (right + more @ w)[on, n]
        new[on, n] = np.linalg.solve(a, b)
    return new


@pytest.mark.parametrize(("steps", "polish"), [(16, 8), (5, 2)])
def test_admm_against_a_plain_loop(steps: int, polish: int) -> None:
    x, w, one = problem(rows=30, many=8, outs=4)
    new, mask = solvers.admm(steps, polish).solve(one, Choice(20))
    wanted = plain_admm(x.T @ x, w, 20, steps, polish)
    np.testing.assert_array_equal(mask[0], wanted)
    fit = ridge_fit(x.T @ x, x.T @ x @ w, w, wanted, 1e-3)
    np.testing.assert_allclose(new[0], fit, atol=1e-8)


def test_fitted_is_least_squares() -> None:
    x, w, one = problem(rows=30, many=8, outs=4)
    mask = numbers(8, 4, seed=5) > 0
    new = np.asarray(fitted(one, jnp.asarray(mask)[None], 0.0, 200)[0])
    for n in range(4):
        on = mask[:, n]
        wanted = np.linalg.lstsq(x[:, on], x @ w[:, n], rcond=None)[0]
        np.testing.assert_allclose(new[on, n], wanted, atol=1e-8)
        assert not new[~on, n].any()
    held = fitted(one, jnp.asarray(mask)[None], 0.05, 200)[0]
    fit = ridge_fit(x.T @ x, x.T @ x @ w, w, mask, 0.05)
    np.testing.assert_allclose(held, fit, atol=1e-8)


def test_fitted_rows_is_least_squares() -> None:
    x, w, one = problem(rows=30, many=8, outs=4)
    on = np.arange(8) % 3 > 0
    new = np.asarray(fitted_rows(one, jnp.asarray(on)[None], 0.0)[0])
    wanted = np.linalg.lstsq(x[:, on], x @ w, rcond=None)[0]
    np.testing.assert_allclose(new[on], wanted, atol=1e-8)
    assert not new[~on].any()
    mask = np.broadcast_to(on[:, None], w.shape)
    held = fitted_rows(one, jnp.asarray(on)[None], jnp.array([0.05]))[0]
    fit = ridge_fit(x.T @ x, x.T @ x @ w, w, mask, 0.05)
    np.testing.assert_allclose(held, fit, atol=1e-8)


def test_targets_of_others() -> None:
    """`right` may be of other inputs: X^T Y in place of X^T X W."""
    x, w, one = problem(rows=30, many=8, outs=4)
    y = numbers(30, 4, seed=7)
    one = one._replace(right=jnp.asarray(x.T @ y)[None])
    on = np.arange(8) > 2
    wanted = np.linalg.lstsq(x[:, on], y, rcond=None)[0]
    new = fitted_rows(one, jnp.asarray(on)[None], 0.0)[0]
    np.testing.assert_allclose(new[on], wanted, atol=1e-8)
    mask = np.broadcast_to(on[:, None], w.shape)
    new = fitted(one, jnp.asarray(mask)[None], 0.0, 200)[0]
    np.testing.assert_allclose(new[on], wanted, atol=1e-8)


def least(x: Any, w: Any, on: Any) -> float:
    """The smallest loss with these inputs."""
    new = np.zeros_like(w)
    new[on] = np.linalg.lstsq(x[:, on], x @ w, rcond=None)[0]
    return loss(x, w, new)


@pytest.mark.parametrize("size", [1, 2])
def test_backward_obs_is_greedy_least_squares(size: int) -> None:
    x, w, one = problem(rows=40, many=8, outs=3)
    members = np.random.default_rng(3).permutation(8).reshape(-1, size)
    on, left = np.ones(8, bool), list(range(len(members)))
    for lost in range(1, len(members)):
        losses = {}
        for u in left:
            trial = on.copy()
            trial[members[u]] = False
            losses[u] = least(x, w, trial)
        worst = min(losses, key=lambda u: losses[u])
        left.remove(worst)
        on[members[worst]] = False
        kept = backward(
            one,
            jnp.asarray(members)[None],
            jnp.array([lost]),
            jnp.zeros(1),
        )
        np.testing.assert_array_equal(kept[0], on)


def test_losses_of_groups_telescope() -> None:
    """1/2 w_S^T (P_SS)^-1 w_S of each step adds up to the loss of all."""
    x, w, _ = problem(rows=40, many=8, outs=3)
    gram, total, now, on = x.T @ x, 0.0, w.copy(), np.ones(8, bool)
    for group in ([1, 4], [0], [2, 7]):
        alive = np.flatnonzero(on)
        p = np.linalg.inv(gram[np.ix_(alive, alive)])
        at = np.searchsorted(alive, group)
        block = np.linalg.inv(p[np.ix_(at, at)])
        total += np.trace(now[group].T @ block @ now[group])
        now[alive] -= p[:, at] @ block @ now[group]
        now[group], on[group] = 0, False
    one = given(gram, w)
    new = fitted_rows(one, jnp.asarray(on)[None], 0.0)[0]
    np.testing.assert_allclose(new, now, atol=1e-9)
    np.testing.assert_allclose(loss(x, w, new), total)


@pytest.mark.slow
def test_many_inputs_go_several_at_once() -> None:
    _, _, one = problem(rows=400, many=60, outs=3)
    members = jnp.arange(60).reshape(1, 60, 1)
    for lost in (0, 1, 7, 41, 60):
        kept = backward(
            one, members, jnp.array([lost]), jnp.full(1, 0.01), rounds=8
        )
        assert int((~kept).sum()) == lost


def test_orthogonal_inputs_update_nothing() -> None:
    """There Wanda's order is that of OBS."""
    x = np.linalg.qr(numbers(30, 6))[0] * np.array([1, 2, 3, 4, 5, 6.0])
    w = numbers(6, 4, seed=1)
    one = given(x.T @ x, w)
    wanda = np.abs(w) * np.linalg.norm(x, axis=0)[:, None]
    cut = np.sort(wanda, axis=None)[11]
    for solver in (solvers.sparsegpt(damping=0.0), solvers.admm()):
        new, mask = solver.solve(one, Choice(11))
        np.testing.assert_allclose(new, np.where(mask, w, 0), atol=1e-9)
        if solver.solve.__qualname__.startswith("sparsegpt"):
            np.testing.assert_array_equal(mask[0], wanda >= cut)


def test_magnitudes_alone() -> None:
    _, w, one = problem()
    new, mask = solvers.mask_only().solve(one, Choice(7))
    assert int((~mask).sum()) == 7
    cut = np.sort(np.abs(w), axis=None)[7]
    np.testing.assert_array_equal(new[0], np.where(np.abs(w) >= cut, w, 0))


SOLVERS = [
    solvers.mask_only(),
    solvers.sparsegpt(),
    solvers.sparsegpt(block=4),
    solvers.admm(),
]


def linear(p: Any, x: Any) -> Any:
    return x @ p["w"]


@pytest.mark.sweep(6)
@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_counts_are_exact_whatever_the_ties(solver: Any) -> None:
    """Of equal weights and equal inputs exactly so many go."""
    params = {"w": jnp.ones((16, 8))}
    x = np.repeat(np.eye(16), 2, 0)
    result = one_shot(linear, params, [x], 0.5, solver=solver)
    assert int((~result.masks["w"]).sum()) == 64
    np.testing.assert_array_equal(
        np.asarray(result.params["w"]) != 0, result.masks["w"]
    )


@pytest.mark.sweep(2)
@pytest.mark.parametrize("solver", [*SOLVERS[1:], solvers.obs()], ids=repr)
def test_inputs_that_were_never_active_go_first(solver: Any) -> None:
    w = numbers(16, 8)
    dead = np.arange(16) % 4 == 1
    w[dead] *= 100
    x = np.where(dead, 0, numbers(60, 16, seed=1))
    how: dict[str, Any] = {}
    if solver.choose_inputs is not None:
        how["structure"] = jprune.structures.channel(0)
    result = one_shot(
        linear, {"w": jnp.asarray(w)}, [x], 0.25, solver=solver, **how
    )
    assert int((~result.masks["w"]).sum()) == 32
    np.testing.assert_array_equal(result.masks["w"], ~dead[:, None] & (w == w))
    np.testing.assert_allclose(result.params["w"][~dead], w[~dead], rtol=1e-6)
    before, after = result.errors["w"]
    assert before == after == 0 or max(before, after) < 1e-20


@pytest.mark.slow
@pytest.mark.parametrize(
    "solver",
    [solvers.sparsegpt(damping=0.0), solvers.obs(ridge=1e-25)],
    ids=repr,
)
def test_a_singular_gram_is_an_error_with_the_leaf(solver: Any) -> None:
    x = np.repeat(numbers(3, 8), 2, 1)  # inputs that repeat each other
    how: dict[str, Any] = {}
    if solver.choose_inputs is not None:
        how["structure"] = jprune.structures.channel(0)
    params = {"w": jnp.asarray(numbers(16, 8))}
    with pytest.raises(ValueError, match=r"one_shot\(solver=.*'w'.*singular"):
        one_shot(linear, params, [x], 0.25, solver=solver, **how)


@pytest.mark.sweep(6)
@pytest.mark.parametrize("solver", [*SOLVERS[1:], solvers.obs()], ids=repr)
def test_fewer_rows_than_columns_are_no_nan(solver: Any) -> None:
    how: dict[str, Any] = {}
    if solver.choose_inputs is not None:
        how["structure"] = jprune.structures.channel(0)
    x = np.float32(numbers(3, 16))
    params = {"w": jnp.asarray(numbers(16, 8), jnp.float32)}
    result = one_shot(linear, params, [x], 0.5, solver=solver, **how)
    assert np.isfinite(result.params["w"]).all()
    assert int((~result.masks["w"]).sum()) == 64
    before, after = result.errors["w"]
    assert after < before


@pytest.mark.sweep(4)
@pytest.mark.parametrize("solver", SOLVERS[::-1], ids=repr)
def test_no_solver_beats_refit_with_its_mask(solver: Any) -> None:
    x, w, _ = problem(rows=60, many=16, outs=8)
    params = {"w": jnp.asarray(w)}
    stats = calibrate(linear, params, [x])
    result = one_shot(linear, params, [x], 0.5, solver=solver)
    best = refit(params, result.masks, stats, ridge=0)
    least = loss(x, w, best["w"])
    assert least <= loss(x, w, result.params["w"]) * (1 + 1e-9)
    mask = np.asarray(result.masks["w"])
    for n in range(8):
        on = mask[:, n]
        fit = np.linalg.lstsq(x[:, on], x @ w[:, n], rcond=None)[0]
        np.testing.assert_allclose(best["w"][on, n], fit, atol=1e-6)


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_a_grid_keeps_zeros_and_its_points(bits: int) -> None:
    x, w, _ = problem(rows=60, many=16, outs=8)
    result = one_shot(
        linear, {"w": jnp.asarray(w)}, [x], 0.5, grid=grids.integer(bits)
    )
    new, mask = np.asarray(result.params["w"]), np.asarray(result.masks["w"])
    assert not new[~mask].any()
    assert mask.sum() == 64
    for column in new.T:
        points = np.abs(column[column != 0])
        assert len(np.unique(points.round(9))) <= 2 ** (bits - 1) - 1
    plain = one_shot(linear, {"w": jnp.asarray(w)}, [x], 0.5)
    np.testing.assert_array_equal(mask, plain.masks["w"])


def test_many_bits_are_no_grid() -> None:
    x, w, _ = problem(rows=60, many=16, outs=8)
    params = {"w": jnp.asarray(w)}
    plain = one_shot(linear, params, [x], 0.5)
    fine = one_shot(linear, params, [x], 0.5, grid=grids.integer(31))
    np.testing.assert_allclose(fine.params["w"], plain.params["w"], atol=1e-6)


def test_scales_of_a_grid() -> None:
    kernel = jnp.asarray(numbers(2, 5, 3))
    steps = np.asarray(grids.integer(4).scales(kernel))
    most = np.abs(kernel).max(1, keepdims=True) / 7
    np.testing.assert_allclose(steps[..., 0], np.repeat(most, 5, 1))
    np.testing.assert_array_equal(steps[..., 1], 7)
    groups = np.asarray(grids.integer(4, group=2).scales(kernel))[..., 0]
    for rows in ([0, 1], [2, 3], [4]):
        most = np.abs(kernel[:, jnp.array(rows)]).max(1) / 7
        for row in rows:
            np.testing.assert_allclose(groups[:, row], most)
    assert (np.asarray(grids.integer(4).scales(0 * kernel))[..., 0] == 1).all()


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: grids.integer(1), "bits"),
        (lambda: grids.integer(4, group=0), "group"),
        (lambda: refit({}, {}, None), "calibrate"),  # type: ignore[arg-type]
    ],
)
def test_what_is_refused(make: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()


def test_every_order_of_two_columns() -> None:
    """A sweep in any order is no better than the least squares of its mask."""
    x, w, _ = problem(rows=30, many=4, outs=1)
    mask = np.array([True, False, True, False])
    best = least(x, w, mask)
    for order in itertools.permutations(range(4)):
        at = np.array(order)
        one = given(x[:, at].T @ x[:, at], w[at])
        kept = jnp.asarray(mask[at])[None, :, None]
        new, _ = swept(one, None, None, damping=0.0, mask=kept)
        back = np.zeros_like(w)
        back[at] = new[0]
        assert loss(x, w, back) >= best - 1e-9
        if not mask[at[:2]].any():  # those that go are first
            np.testing.assert_allclose(loss(x, w, back), best)
