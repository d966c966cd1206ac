"""`report.speed`: what it counts and refuses. No time decides a test."""

import time

import jax
import jax.numpy as jnp
import pytest

import jprune
from jprune import report


def fn(w, x):
    return x @ w


def slow(w, x):
    """Thirty times the work: there is no machine on which it is faster."""
    return jax.lax.fori_loop(0, 30, lambda i, y: jnp.tanh(y @ w) @ w.T, x) @ w


MODELS = {
    "dense": (slow, jnp.ones((256, 256))),
    "small": (fn, jnp.ones((256, 256))),
}
X = jnp.ones((256, 256))


def test_models_are_timed_in_turn():
    found = report.speed(MODELS, X, rounds=5)
    assert list(found) == ["dense", "small"]
    dense, small = found["dense"], found["small"]
    assert dense.ratio == dense.low == dense.high == 1.0
    assert 1 < small.low <= small.ratio <= small.high
    assert small.seconds < dense.seconds
    assert small.compile_seconds > 0
    lines = str(found).splitlines()
    assert lines[0].split()[:2] == ["model", "call"]
    assert lines[3].startswith("small")
    assert len(lines) == 4


def test_a_median_of_rounds(monkeypatch):
    """By a clock that says what each call takes."""
    now, calls = [0.0], []
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    real = jax.block_until_ready

    def ready(x):
        calls.append(1)
        if len(calls) > 4:  # after what is loaded late
            now[0] += [1.0, 2.0, 3.0, 2.0, 1.0, 2.0][len(calls) - 5]
        return real(x)

    monkeypatch.setattr(jax, "block_until_ready", ready)
    found = report.speed({"a": (fn, X), "b": (fn, X)}, X, rounds=3)
    # a, b; b, a; a, b
    assert found["a"].seconds == 1.0
    assert found["b"].seconds == 2.0
    assert found["b"].ratio == 0.5
    assert found["b"].low == 0.5
    assert found["b"].high == pytest.approx(0.5833, abs=1e-3)


def test_what_the_clock_can_not_tell_is_refused(monkeypatch):
    monkeypatch.setattr(time, "perf_counter", lambda: 1.0)
    with pytest.raises(ValueError, match="give a larger batch"):
        report.speed(MODELS, X, rounds=2)


@pytest.mark.parametrize(
    ("models", "args", "words"),
    [
        ({}, (X,), "must be a dict"),
        ([fn], (X,), "must be a dict"),
        ({"a": fn}, (X,), r"'a': \.\.\.\}\)` must be \(fn, params\)"),
        (
            {"a": (fn, X)},
            (jax.ShapeDtypeStruct((2, 2), float),),
            "must have values",
        ),
    ],
)
def test_bad_models_are_refused(models, args, words):
    with pytest.raises(ValueError, match=words):
        jprune.report.speed(models, *args)
