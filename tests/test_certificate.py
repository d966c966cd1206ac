"""Two models side by side: what a certificate says, and never passes."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jprune
from jprune.compaction import Certificate

PARAMS = {
    "w": jnp.asarray(np.random.default_rng(0).uniform(0.1, 1, (4, 8)), "f"),
    "v": jnp.ones((8, 3)),
}
MASKS = {"v": jnp.arange(8)[:, None] > 3}
X = jnp.ones((2, 4))


def net(params, x):
    return jax.nn.relu(x @ params["w"]) @ params["v"]


def logarithm(params, x):
    """NaN where inputs are negative."""
    return jnp.log(x).sum() + net(params, x)


def compacted(fn):
    return jprune.compact(fn, PARAMS, X, masks=MASKS)


def test_what_is_not_finite_on_the_given_arguments_has_no_error_but_inf():
    small = compacted(logarithm)
    assert small.certify(X).error < 1e-5
    for x in (-X, 0 * X):  # NaN and -inf, the same in both models
        certificate = small.certify(x)
        assert certificate.error == np.inf
        assert str(certificate).startswith("largest error inf ")


def test_random_inputs_on_which_the_masked_model_is_not_finite_are_counted():
    certificate = compacted(logarithm).certify(X, seeds=3)
    assert certificate[2:] == (1, 3)  # eight normal numbers: some are negative
    assert str(certificate).endswith("1 inputs, 3 skipped as not finite")
    assert certificate.error < 1e-5
    certificate = compacted(net).certify(X, seeds=3)
    assert certificate[2:] == (4, 0)
    assert str(certificate).endswith(", 4 inputs")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_smaller_model_that_fails_alone_is_not_skipped(value):
    """On random inputs only: all that are given are 1."""

    def second(params, x):
        return net(params, jnp.where(x == 1, x, value))

    assert jprune.compare(net, PARAMS, second, PARAMS, X, seeds=0).error == 0
    found = jprune.compare(net, PARAMS, second, PARAMS, X, seeds=2)
    assert found.error == np.inf
    assert found[2:] == (3, 0)
    other = jprune.compare(second, PARAMS, net, PARAMS, X, seeds=2)
    assert other[2:] == (1, 2)


def test_compare_sees_what_a_module_at_the_new_sizes_computes():
    """Whose scale goes with the width: it is another function."""

    def scaled(params, x):
        hidden = jax.nn.relu(x @ params["w"])
        return hidden @ params["v"] / hidden.shape[-1] ** 0.5

    small = compacted(scaled)
    dense = jprune.apply_masks(PARAMS, MASKS | {"w": None})
    certificate = jprune.compare(scaled, dense, small.fn, small.params, X)
    assert certificate.error < 1e-5
    assert certificate == small.certify(X)
    rebuilt = jprune.compare(
        small.fn, small.params, scaled, small.params, X, seeds=0
    )
    assert rebuilt.error == pytest.approx(rebuilt.scale * (2**0.5 - 1))
    small = compacted(net)
    rebuilt = jprune.compare(small.fn, small.params, net, small.params, X)
    assert rebuilt.error < 1e-5 < 1 < rebuilt.scale


@pytest.mark.parametrize(
    ("fn", "error"),
    [
        (lambda w, x: w * 1j, 1.0),  # the imaginary part
        (lambda w, x: w > 3, 0.0),
        (lambda w, x: w.astype(jnp.bfloat16) + 2, 2.0),
        (lambda w, x: (w + 2).astype(int), 2.0),
        (lambda w, x: {"a": [], "b": w[:0]}, 0.0),
        (lambda w, x: jax.random.key(0), 0.0),
    ],
)
def test_outputs_of_every_kind(fn, error):
    one, two = jnp.zeros(3), jnp.full(3, 1 if error == 1 else 0)

    def plain(w, x):
        out = fn(w, x)
        return out - 2 if error == 2 else out

    assert jprune.compare(plain, one, fn, two, X, seeds=1) == Certificate(
        error, 0.0, 2
    )


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (
            lambda p, x: {"a": x, "b": [x]},
            lambda p, x: {"a": x},
            "only the first model has the output 'b/0'; the other has: a.",
        ),
        (
            lambda p, x: x,
            lambda p, x: (x, x),
            "only the first model has the output '(root)'; the other has: 0, 1",
        ),
        (
            lambda p, x: {"a": x},
            lambda p, x: {"a": x[:1]},
            "the output 'a' has shape (2, 4) in the first model and (1, 4) in",
        ),
    ],
)
def test_outputs_that_do_not_go_together_are_refused(first, second, message):
    call = "`compare(fn_a, params_a, fn_b, params_b, *args)`: "
    with pytest.raises(ValueError, match="^" + re.escape(call + message)):
        jprune.compare(first, PARAMS, second, PARAMS, X)


def test_what_has_no_values_is_refused():
    shape = jax.ShapeDtypeStruct((2, 4), jnp.float32)
    with pytest.raises(
        ValueError, match=r"args\[0\].* must have values, got a"
    ):
        jprune.compare(net, PARAMS, net, PARAMS, shape)
    with pytest.raises(ValueError, match="parameter 'w' must have values"):
        jprune.compare(net, PARAMS, net, PARAMS | {"w": shape}, X)
    with pytest.raises(ValueError, match="fn must be a function, got 3"):
        jprune.compare(net, PARAMS, 3, PARAMS, X)
