"""The models of the benchmark of one-shot pruning."""

import importlib
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import jprune

FOLDER = Path(__file__).parents[1] / "examples/benchmarks"
WIDTH, HEADS, INNER, LAYERS = 8, 2, 12, 2


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("one_shot_models")


def stored() -> dict[str, np.ndarray]:
    """A small BERT of random weights, with the names of Hugging Face."""
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (20, WIDTH),
        "embeddings.position_embeddings.weight": (9, WIDTH),
        "embeddings.token_type_embeddings.weight": (2, WIDTH),
    }
    norms = ["embeddings"]
    for i in range(LAYERS):
        at = f"encoder.layer.{i}"
        norms += [f"{at}.attention.output", f"{at}.output"]
        for name, out, into in (
            ("attention.self.query", WIDTH, WIDTH),
            ("attention.self.key", WIDTH, WIDTH),
            ("attention.self.value", WIDTH, WIDTH),
            ("attention.output.dense", WIDTH, WIDTH),
            ("intermediate.dense", INNER, WIDTH),
            ("output.dense", WIDTH, INNER),
        ):
            shapes[f"{at}.{name}.weight"] = out, into
            shapes[f"{at}.{name}.bias"] = (out,)
    for name in norms:
        shapes[f"{name}.LayerNorm.weight"] = (WIDTH,)
        shapes[f"{name}.LayerNorm.bias"] = (WIDTH,)
    return {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + np.vectorize(math.erf)(x / np.sqrt(2))) / 2


def forward(w: dict[str, np.ndarray], ids: list[int]) -> np.ndarray:
    """One sentence without padding, in float64, head after head."""

    def dense(name: str, x: np.ndarray) -> np.ndarray:
        return x @ w[f"{name}.weight"].T.astype(float) + w[f"{name}.bias"]

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        name = f"{name}.LayerNorm"
        x = (x - x.mean(1)[:, None]) / np.sqrt(x.var(1) + 1e-12)[:, None]
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    x = w["embeddings.word_embeddings.weight"][ids].astype(float)
    x += w["embeddings.position_embeddings.weight"][: len(ids)]
    x = norm("embeddings", x + w["embeddings.token_type_embeddings.weight"][0])
    for i in range(LAYERS):
        at = f"encoder.layer.{i}"
        q, k, v = (
            np.split(dense(f"{at}.attention.self.{name}", x), HEADS, 1)
            for name in ("query", "key", "value")
        )
        found = []
        for h in range(HEADS):
            a = np.exp(q[h] @ k[h].T / np.sqrt(WIDTH / HEADS))
            found.append(a / a.sum(1)[:, None] @ v[h])
        y = dense(f"{at}.attention.output.dense", np.concatenate(found, 1))
        x = norm(f"{at}.attention.output", x + y)
        y = dense(f"{at}.intermediate.dense", x)
        y = dense(f"{at}.output.dense", gelu(y))
        x = norm(f"{at}.output", x + y)
    return x.mean(0)


def test_the_encoder_is_bert_and_ignores_padding(script: Any) -> None:
    weights = stored()
    params = script.encoder_params(weights)
    kernel = params["layers"]["1"]["up"]["kernel"]
    assert kernel.shape == (WIDTH, INNER)
    lines = [[3, 1, 4, 1, 5], [9, 2]]
    ids, mask = np.full((2, 7), 19), np.zeros((2, 7), int)
    for row, line in enumerate(lines):
        ids[row, : len(line)], mask[row, : len(line)] = line, 1
    found = jax.jit(script.encode, static_argnames="heads")(
        params, ids, mask, heads=HEADS
    )
    right = np.stack([forward(weights, line) for line in lines])
    np.testing.assert_allclose(found, right, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_trained_parameters_come_back_from_the_cache(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two classes of images: one bright above, one below."""
    rng = np.random.default_rng(0)
    y = rng.integers(2, size=512).astype(np.int32)
    bright = (np.arange(784) < 392)[None] == y[:, None]
    x = (bright * rng.integers(256, size=(512, 784))).astype(np.uint8)
    data = script.Data(x, y, x[:100], y[:100])
    monkeypatch.setitem(script.EPOCHS, "mlp", 2)
    first = script.trained("mlp", data, 1, str(tmp_path))
    assert script.accuracy(first, data, batch=50) == 100
    monkeypatch.setattr(script, "train", None)
    again = script.trained("mlp", data, 1, str(tmp_path))
    jax.tree.map(np.testing.assert_array_equal, first.params, again.params)


@pytest.mark.slow
def test_a_module_of_nnx_is_the_function_and_is_pruned_alike(
    script: Any,
) -> None:
    minilm = importlib.import_module("minilm")
    params = script.encoder_params(stored())

    def fn(params: Any, ids: Any, mask: Any) -> Any:
        return script.encode(params, ids, mask, heads=HEADS)

    rng = np.random.default_rng(1)
    ids = rng.integers(20, size=(128, 7))
    mask = (np.arange(7) < rng.integers(2, 8, size=(128, 1))).astype(int)
    function, module = script.Model(fn, params), minilm.module(params, HEADS)
    dense = minilm.outputs(function, (ids, mask))
    np.testing.assert_allclose(
        dense, minilm.outputs(module, (ids, mask)), atol=1e-5
    )
    found = []
    for fn, params in (function, module):
        result = minilm.pruned(script.Model(fn, params), (ids, mask), 0.6)
        small = jprune.compact(fn, result.params, ids, mask, masks=result.masks)
        model = script.Model(small.fn, small.params)
        sizes = sorted(x.shape for x in jax.tree.leaves(small.params))
        found.append(
            (sizes, minilm.judge(model, dense, (ids, mask), (ids, mask)))
        )
    assert found[0][0] == found[1][0]
    judged, other = (one for _, one in found)
    np.testing.assert_allclose(judged.cosine, other.cosine, rtol=1e-5)
    np.testing.assert_allclose(judged.worst, other.worst, rtol=1e-5)
    assert 0 < judged.worst < judged.cosine < 1
