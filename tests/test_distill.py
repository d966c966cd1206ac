"""`distill`: what is trained, what stays, and what is refused."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jprune
from jprune import search, structures


def numbers(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def fn(params, x):
    h = (x @ params["w"] - params["norm"]["mean"]) / params["norm"]["var"]
    return h @ params["v"]


PARAMS = {
    "w": numbers(4, 6),
    "norm": {"mean": jnp.zeros(6), "var": jnp.ones(6)},
    "v": numbers(6, 3, seed=1),
    "count": jnp.int32(3),
}
X = numbers(64, 4, seed=2)


def test_a_linear_student_comes_to_the_least_squares():
    teacher = numbers(4, 2)
    student = jprune.distill(
        lambda w, x: x @ w,
        teacher,
        [X],
        optax.adam(0.05),
        300,
        distance=search.squared_error,
    )
    # Of three inputs: the closed form, with the third one's share taken over.
    found = student(lambda w, x: x[:, :3] @ w, jnp.zeros((3, 2)), None)
    wanted = np.linalg.lstsq(X[:, :3], X @ teacher, rcond=None)[0]
    np.testing.assert_allclose(found, wanted, atol=2e-3)


@pytest.mark.slow
def test_what_is_masked_stays_zero_and_statistics_stay():
    masks = jprune.find_masks(PARAMS, 0.5, where="w|v")
    start = jprune.apply_masks(PARAMS, masks)
    finetune = jprune.distill(fn, PARAMS, [X, (X[:32],)], optax.adamw(0.01), 5)
    found = finetune(fn, start, masks)
    for name in ("w", "v"):
        assert not np.asarray(found[name])[~masks[name]].any()
        assert (np.asarray(found[name]) != start[name])[masks[name]].all()
    jax.tree.map(np.testing.assert_array_equal, found["norm"], PARAMS["norm"])
    assert found["count"] == 3
    before, after = (
        float(search.kl(fn(PARAMS, X), fn(p, X))) for p in (start, found)
    )
    assert after < before


def _distance(*given):
    return {"distance": given[0]} if given else {}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((fn, PARAMS, [], optax.sgd(0.1), 3), "empty"),
        ((fn, PARAMS, X, optax.sgd(0.1), 3), "iterable of batches"),
        ((fn, PARAMS, [X], optax.sgd, 3), "gradient transformation"),
        ((fn, PARAMS, [X], optax.sgd(0.1), 0), "steps.* >= 1, got 0"),
        (
            (fn, PARAMS, [X], optax.sgd(0.1), 3, lambda y, z: y - z),
            "distance.* must return a scalar",
        ),
        ((1, PARAMS, [X], optax.sgd(0.1), 3), "fn must be a function"),
    ],
)
def test_bad_input_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        jprune.distill(*arguments[:5], **_distance(*arguments[5:]))


@pytest.mark.parametrize(
    "call",
    [
        jprune.calibrate,
        partial(jprune.distill, optimizer=optax.sgd(0.1), steps=1),
        partial(search.sensitivity, structure=structures.channel(-1)),
    ],
    ids=["calibrate", "distill", "sensitivity"],
)
def test_a_batch_with_labels_is_explained(call):
    with pytest.raises(TypeError, match="positional argument") as caught:
        call(fn, PARAMS, [(X, numbers(64))])
    (note,) = (x for x in caught.value.__notes__ if "batches=" in x)
    assert "the 2 entries of a batch" in note
    assert "such as labels" in note
