"""Masks applied, found in states, measured and printed."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jprune

pytestmark = pytest.mark.usefixtures("quick_compilation")

PARAMS = {
    "a": jnp.array([[1.0, -4.0], [3.0, -2.0]]),
    "b": jnp.arange(6.0).reshape(2, 3) - 2.5,
    "bias": jnp.ones(2),
}
MASKS = {
    "a": jnp.array([[False, True], [True, False]]),
    "b": jnp.array([[True, False, False], [True, True, False]]),
    "bias": optax.MaskedNode(),
}


def assert_masks(got: Any, wanted: Any) -> None:
    assert str(jax.tree.structure(got)) == str(jax.tree.structure(wanted))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == bool
        np.testing.assert_array_equal(a, b)


def test_apply_masks_clears_nan_and_infinity() -> None:
    w = jnp.array([jnp.nan, jnp.inf, -jnp.inf, jnp.nan, -0.0, 2.0])
    keep = jnp.array([False, False, False, True, True, True])
    got = np.asarray(jprune.apply_masks(w, keep))
    np.testing.assert_array_equal(got, [0, 0, 0, np.nan, -0.0, 2])
    assert not np.signbit(got[:3]).any()
    assert np.signbit(got[4]), "what is kept keeps its bits"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_apply_masks_keeps_dtypes(dtype: str) -> None:
    with (
        jax.enable_x64(dtype == "float64"),
        jax.numpy_dtype_promotion("strict"),
    ):
        w = jnp.asarray([[1.0, 2.0]], dtype)
        got = jax.jit(jprune.apply_masks)(w, jnp.array([[True, False]]))
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, jnp.asarray([[1.0, 0.0]], dtype))


@pytest.mark.parametrize("hole", [None, optax.MaskedNode()])
def test_apply_masks_passes_over_holes(hole: Any) -> None:
    masks = {"a": MASKS["a"], "b": hole, "bias": hole}
    got = jprune.apply_masks(PARAMS, masks)
    np.testing.assert_array_equal(got["a"], [[0, -4], [3, 0]])
    assert got["b"] is PARAMS["b"]
    inside = jprune.apply_masks({"a": hole, "b": PARAMS["b"]}, MASKS)
    assert inside["a"] == hole
    assert int((inside["b"] != 0).sum()) == 3


def test_a_hole_stands_for_a_branch() -> None:
    params = {"one": PARAMS, "two": {"a": PARAMS["a"]}}
    got = jprune.apply_masks(params, {"one": None, "two": {"a": MASKS["a"]}})
    jax.tree.map(np.testing.assert_array_equal, got["one"], PARAMS)
    np.testing.assert_array_equal(got["two"]["a"], [[0, -4], [3, 0]])


@pytest.mark.parametrize("shape", [(3,), (1, 3), (2, 1), (1, 1), ()])
def test_masks_broadcast(shape: tuple[int, ...]) -> None:
    mask = np.arange(1, 1 + np.prod(shape, dtype=int)).reshape(shape) % 2 == 0
    params = {"b": PARAMS["b"]}
    wanted = np.where(mask, np.asarray(params["b"]), 0)
    got = jprune.apply_masks(params, {"b": mask})
    np.testing.assert_array_equal(got["b"], wanted)
    state = jprune.keep_masks({"b": mask}).init(params)
    assert state.masks["b"].shape == (2, 3)
    assert state.masks["b"].sum() == np.broadcast_to(mask, (2, 3)).sum()


def sgd(pruner: Any) -> Any:
    return optax.chain(optax.sgd(0.1, momentum=0.9), pruner)


def labels(params: Any) -> Any:
    return {name: "second" if name == "b" else "first" for name in params}


KEEP = jprune.keep_masks(MASKS)
COMPOSITIONS = {
    "alone": lambda: KEEP,
    "chain": lambda: sgd(KEEP),
    "named_chain": lambda: optax.named_chain(
        ("descend", optax.sgd(0.1)), ("prune", KEEP)
    ),
    "nested": lambda: optax.chain(sgd(optax.chain(KEEP)), optax.identity()),
    "MultiSteps": lambda: optax.MultiSteps(sgd(KEEP), 2),
    "apply_if_finite": lambda: optax.apply_if_finite(sgd(KEEP), 3),
    "masked": lambda: optax.masked(
        sgd(KEEP), {"a": True, "b": True, "bias": False}
    ),
    "masked by nothing": lambda: optax.masked(sgd(KEEP), lambda p: True),
    "partition": lambda: optax.partition(
        {"first": sgd(KEEP), "second": optax.chain(optax.adam(0.1), KEEP)},
        labels,
    ),
    "inject_hyperparams": lambda: optax.inject_hyperparams(
        lambda learning_rate: optax.chain(optax.sgd(learning_rate), KEEP)
    )(learning_rate=0.1),
    "merged": lambda: optax.chain(
        jprune.keep_masks({"a": MASKS["a"], "b": None, "bias": None}),
        jprune.keep_masks({"a": True, "b": MASKS["b"], "bias": None}),
    ),
    "everything": lambda: optax.MultiSteps(
        optax.masked(
            optax.partition({"first": KEEP, "second": sgd(KEEP)}, labels),
            {"a": True, "b": True, "bias": False},
        ),
        2,
    ),
}


@pytest.mark.parametrize("composition", COMPOSITIONS)
def test_get_masks(composition: str) -> None:
    tx = COMPOSITIONS[composition]()
    state = tx.init(PARAMS)
    assert_masks(jprune.get_masks(state), MASKS)
    _, state = tx.update(PARAMS, state, PARAMS)
    assert_masks(jprune.get_masks(state), MASKS)
    assert_masks(jax.jit(jprune.get_masks)(state), MASKS)


def test_get_masks_of_different_methods() -> None:
    taylor = jprune.criteria.taylor()
    prune_by_taylor = jprune.prune(1 / 3, where="^b$", criterion=taylor)
    tx = optax.partition(
        {
            "first": sgd(jprune.prune(0.5)),
            "second": jprune.with_gradients(sgd(prune_by_taylor)),
        },
        labels,
    )
    grads = jax.tree.map(jnp.cos, PARAMS)
    _, state = tx.update(grads, tx.init(PARAMS), PARAMS)
    wanted = jprune.find_masks(PARAMS, 0.5, where="^a$")
    wanted = jprune.find_masks(
        PARAMS, 1 / 3, where="^b$", criterion=taylor, grads=grads, masks=wanted
    )
    assert_masks(jprune.get_masks(state), wanted)


def test_several_pruners_prune_what_any_prunes() -> None:
    one = {"a": MASKS["a"], "b": None, "bias": None}
    two = {"a": ~MASKS["a"] | jnp.eye(2, dtype=bool), "b": None, "bias": None}
    tx = optax.chain(jprune.keep_masks(one), jprune.keep_masks(two))
    state = tx.init(PARAMS)
    masks = jprune.get_masks(state)
    np.testing.assert_array_equal(masks["a"], one["a"] & two["a"])
    updates, _ = tx.update(PARAMS, state, PARAMS)
    landed = optax.apply_updates(PARAMS, updates)
    assert not landed["a"][~masks["a"]].any()


def test_get_masks_without_a_pruner() -> None:
    tx = optax.chain(optax.adam(0.1), jprune.project_frobenius_ball(1.0))
    with pytest.raises(ValueError, match="found no pruner"):
        jprune.get_masks(tx.init(PARAMS))
    with pytest.raises(ValueError, match="found no pruner"):
        jprune.get_masks(())


def test_measure_sparsity() -> None:
    measure = jax.jit(jprune.measure_sparsity)
    assert float(measure(MASKS)) == pytest.approx(5 / 10)
    assert float(jprune.measure_sparsity(MASKS)) == float(measure(MASKS))
    assert float(measure({"a": None, "b": jnp.zeros((3, 0), bool)})) == 0
    assert float(measure(jnp.zeros((7,), bool))) == 1
    assert float(measure(jnp.ones((7,), bool))) == 0
    both = jnp.stack([MASKS["a"], jnp.ones_like(MASKS["a"])])
    np.testing.assert_array_equal(jax.vmap(measure)(both), [0.5, 0.0])
    assert measure(MASKS).shape == ()


def test_measured_sparsity_is_what_was_asked_for() -> None:
    masks = jprune.find_masks(jnp.arange(81.0).reshape(9, 9), 0.5)
    assert float(jprune.measure_sparsity(masks)) == pytest.approx(40 / 81)


def test_summarize() -> None:
    params = {**PARAMS, "steps": jnp.array(3)}
    masks = {**MASKS, "steps": None}
    summary = jprune.summarize(params, masks)
    rows = {leaf.path: leaf for leaf in summary.leaves}
    assert (rows["a"].weights, rows["a"].kept, rows["a"].zeros) == (4, 2, 0)
    assert (rows["b"].kept, rows["b"].shape) == (3, (2, 3))
    assert not rows["bias"].masked
    assert (summary.weights, summary.kept, summary.zeros) == (13, 8, 0)
    assert summary.sparsity == pytest.approx(5 / 10)
    pruned = jprune.summarize(jprune.apply_masks(params, masks), masks)
    assert pruned.zeros == 5


def test_summary_prints_a_table() -> None:
    lines = str(jprune.summarize(PARAMS, MASKS)).splitlines()
    assert lines[0].split() == (
        ["leaf", "shape", "dtype", "weights", "kept", "sparsity", "zeros"]
    )
    assert lines[2].split() == ["a", "2x2", "float32", "4", "2", "50.0%", "0"]
    assert lines[4].split() == ["bias", "2", "float32", "2", "2", "-", "0"]
    assert lines[-1].split() == ["total", "12", "7", "50.0%", "0"]
    assert len({line.rfind(" ") for line in lines[2:5]}) == 1, "aligned"
    assert str(jprune.summarize({}, {})).splitlines()[-1].split()[0] == "total"


def test_summarize_broadcast_and_16_bits() -> None:
    params = {"w": jnp.zeros((2, 3), jnp.bfloat16)}
    (leaf,) = jprune.summarize(params, {"w": jnp.array([[True], [False]])})[0]
    assert leaf == ("w", (2, 3), "bfloat16", 6, 3, 6, True)


def test_summarize_refuses_traced_values() -> None:
    with pytest.raises(ValueError, match=r"'a' is traced"):
        jax.jit(lambda p: jprune.summarize(p, MASKS).kept)(PARAMS)


@pytest.mark.parametrize("bad", [np.array([1, 0]), np.array([1.0, 0.0])])
def test_sparsity_of_numbers_is_refused(bad):
    with pytest.raises(
        ValueError, match=r"measure_sparsity.*'a/w' must be bool"
    ):
        jprune.measure_sparsity({"a": {"w": bad}})


def test_summary_of_random_keys():
    params = {"key": jax.random.key(0), "w": jnp.eye(2)}
    summary = jprune.summarize(params, jprune.find_masks(params, 0.5))
    assert summary.zeros == 2
