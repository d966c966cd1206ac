"""What a model costs, against closed forms."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
from compaction_models import gpt

import jprune
from jprune import report
from jprune.compaction.graph.trace import Trace


def test_attention_and_layers_of_a_scan_are_counted():
    layers, width, heads, groups, size, inner, words = 3, 8, 4, 2, 4, 12, 9
    fn, params, (tokens,) = gpt(
        layers, width, heads, groups, size, inner, words
    )
    batch, time = tokens.shape
    per_token = width * (heads + 2 * groups) * size  # qkv
    per_token += heads * size * width + 2 * width * inner
    attention = 2 * batch * heads * time * time * size
    products = layers * (batch * time * per_token + attention)
    products += batch * time * width * words
    params = jax.tree.map(lambda x: jnp.ones_like(x, jnp.float32), params)
    found = report.cost(fn, params, tokens)
    entries = sum(x.size for x in jax.tree.leaves(params))
    assert found.dense == (entries, products, 4 * entries)
    assert found.masked == found.compact == found.dense


def test_convolution_masked_and_compact():
    def fn(params, x):
        numbers = ("NHWC", "HWIO", "NHWC")
        for w in params:
            x = jax.lax.conv_general_dilated(
                x, w, (1, 1), "VALID", dimension_numbers=numbers
            )
        return x

    params = [jnp.ones((3, 3, 2, 4)), jnp.ones((3, 3, 4, 5))]
    masks = [jnp.arange(4) > 0, None]  # one channel of four
    found = report.cost(fn, params, jnp.ones((1, 6, 6, 2)), masks=masks)
    assert found.dense.multiply_adds == 16 * 9 * 2 * 4 + 4 * 9 * 4 * 5
    assert found.masked.multiply_adds == 16 * 9 * 2 * 3 + 4 * 9 * 3 * 5
    assert found.compact.multiply_adds == found.masked.multiply_adds
    assert found.masked.bytes == found.dense.bytes
    assert found.compact.parameters == 9 * 2 * 3 + 9 * 3 * 5


class Counting:
    """A function of which JAX keeps no trace: no two calls are equal."""

    def __init__(self):
        self.calls = 0

    def __call__(self, params, x):
        self.calls += 1
        return jax.nn.relu(x @ params["w"]) @ params["v"]

    def __eq__(self, other):
        return False

    def __hash__(self):
        return self.calls


def test_the_function_is_traced_once():
    params = {"w": jnp.ones((4, 8)), "v": jnp.ones((8, 3))}
    fn, masks, x = Counting(), {"w": jnp.arange(8) > 5}, jnp.ones((10, 4))
    found = report.cost(fn, params, x, masks=masks)
    assert found.compact.multiply_adds == 10 * 2 * (4 + 3)
    assert fn.calls == 1
    small = jprune.compact(fn, params, x, masks=masks)
    assert fn.calls == 2
    small.fn(small.params, x)  # checks the shapes of its arguments
    assert fn.calls == 3
    small.fn(small.params, x)
    assert fn.calls == 3


def test_each_variant_is_walked_once(monkeypatch):
    """The dense program, and without each half of its units; the masked one,
    without what is dead in it, and as the proof sees that; the compact one."""
    walked = []
    walk = Trace.walk

    def counted(self, known):
        walked.append(self)
        return walk(self, known)

    monkeypatch.setattr(Trace, "walk", counted)
    params = {"w": jnp.ones((4, 8)), "v": jnp.ones((8, 3))}
    masks = {"w": jnp.arange(8) > 5}
    report.cost(Counting(), params, jnp.ones((10, 4)), masks=masks)
    assert list(Counter(walked).values()) == [6, 1]
    walked.clear()
    report.cost(Counting(), params, jnp.ones((10, 4)))  # nothing is dead
    assert list(Counter(walked).values()) == [5, 1]


def test_cost_prints_as_a_table():
    counts = report.Count(1000, 20, 4000)
    table = str(report.Cost(counts, counts, counts)).splitlines()
    assert table[0].split() == ["parameters", "multiply-adds", "bytes"]
    assert table[3].split() == ["compact", "1,000", "20", "4,000"]
    assert np.ptp([len(line) for line in table]) == 0
    assert jprune.report is report
