"""A pretrained encoder of sentences with half of its multiply-adds.

    python examples/benchmarks/minilm.py --model MODEL_DIR --text sentences.txt

The model is the BERT of `one_shot_models.py` (all-MiniLM-L6-v2), and no labels
are used. For each seed:

1. `search.sensitivity` measures, on 64 sentences, how far the embeddings turn
   when a layer loses hidden units, heads, or the width of its heads' values;
   `search.fit` divides the removal among the layers. The width of the
   embeddings stays: it is what the model returns.
2. `one_shot` prunes the dense model with 512 sentences and repairs it,
   `compact` cuts it.
3. `distill` trains what is left to give the embeddings of the dense model, on
   4,000 sentences (the first, in an order of the seed).

The lines of the file are shuffled first. All is judged on the last 1,000 of
6,000, which nothing else has seen (choices were made on the 1,000 before).
"cosine" is that of a sentence's embedding to the dense one, "worst" the mean of
the 5 % lowest, "nearest" how often the same one of the other 999 sentences is
the most similar, "of ten" how many of the ten most similar are the same,
"noisy" the cosine to a model's own embedding when a word is left out. "batch
1", "batch 32" and "batch 256" say how many times as fast as the dense model it
is, medians of calls in turn; distilling changes no shape. With `--steps 0`
there is no third step, and nothing of the next paragraph. Sentences are cut and
padded to 32 tokens. Cells are means over seeds with standard errors.

The last model is saved as a program, loaded, and compared; if jax2onnx and
onnxruntime are installed, it is run by the latter too. Last, the same model is
loaded as a module of Flax NNX, and pruned and repaired as the function was.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from one_shot_models import (
    Model,
    cosine,
    encoder,
    read_lines,
    sentences,
)
from served import SERVED, faster, mean
from tqdm import tqdm

import jprune
from jprune import allocations, search

LENGTH = 32
RATE = 2e-4
BATCH = 32
READ = "down/kernel|output/kernel"  # pools that one of these reads
TEST = slice(5000, 6000)

Batch = tuple[np.ndarray, np.ndarray]  # numbers of words, and their mask


class Attention(nnx.Module):
    """Of BERT."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs) -> None:
        for name in ("query", "key", "value", "output"):
            setattr(self, name, nnx.Linear(width, width, rngs=rngs))
        self.heads = heads

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Maps ``[batch, length, width]`` to the same."""
        q, k, v = (
            layer(x).reshape(*x.shape[:2], self.heads, -1)
            for layer in (self.query, self.key, self.value)
        )
        found = jax.nn.dot_product_attention(q, k, v, mask=mask[:, None, None])
        return self.output(found.reshape(*x.shape[:2], -1))


class Layer(nnx.Module):
    """Attention and hidden units, each followed by a norm."""

    def __init__(
        self, width: int, hidden: int, heads: int, rngs: nnx.Rngs
    ) -> None:
        self.attention = Attention(width, heads, rngs)
        self.attention_norm = norm(width, rngs)
        self.up = nnx.Linear(width, hidden, rngs=rngs)
        self.down = nnx.Linear(hidden, width, rngs=rngs)
        self.output_norm = norm(width, rngs)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Maps ``[batch, length, width]`` to the same."""
        x = self.attention_norm(x + self.attention(x, mask))
        inner = jax.nn.gelu(self.up(x), approximate=False)
        return self.output_norm(x + self.down(inner))


class Encoder(nnx.Module):
    """As `one_shot_models.encode`, its parameters under the same names."""

    def __init__(self, params: Any, heads: int, rngs: nnx.Rngs) -> None:
        tables = params["embedding"]
        self.embedding = nnx.Dict(
            {name: nnx.Param(table) for name, table in tables.items()}
        )
        width = tables["word"].shape[1]
        self.embedding_norm = norm(width, rngs)
        hidden = params["layers"]["0"]["up"]["kernel"].shape[1]
        self.layers = nnx.List(
            Layer(width, hidden, heads, rngs) for _ in params["layers"]
        )
        layers = {int(i): layer for i, layer in params["layers"].items()}
        state = nnx.state(self, nnx.Param)
        nnx.replace_by_pure_dict(state, {**params, "layers": layers})
        nnx.update(self, state)

    def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Maps ``[batch, length]`` to ``[batch, width]``."""
        table = self.embedding
        x = table["word"][ids] + table["position"][: ids.shape[1]]
        x = self.embedding_norm(x + table["type"][0])
        for layer in self.layers:
            x = layer(x, mask > 0)
        weights = mask.astype(x.dtype)[..., None]
        return (x * weights).sum(1) / weights.sum(1)


def norm(width: int, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(
        width, epsilon=1e-12, use_fast_variance=False, rngs=rngs
    )


def module(params: Any, heads: int) -> Model:
    """The NNX module as a function of its state."""
    made = Encoder(params, heads, nnx.Rngs(0))
    definition, state = nnx.split(made)

    def fn(state: Any, ids: jax.Array, mask: jax.Array) -> jax.Array:
        return nnx.merge(definition, state)(ids, mask)

    return Model(fn, state)


def apart(a: jax.Array, b: jax.Array) -> jax.Array:
    """How far embeddings have turned, 0 to 2."""
    return jnp.mean(1 - cosine(a, b))


def parts(inputs: Batch, size: int) -> list[Batch]:
    ids, mask = inputs
    starts = range(0, len(ids), size)
    return [(ids[i : i + size], mask[i : i + size]) for i in starts]


def pruned(model: Model, inputs: Batch, left: float) -> Any:
    """Parameters and masks: searched, chosen and repaired."""
    fn, params = model
    first = parts(inputs, 64)[:8]
    graph = jprune.trace_units(fn, params, *parts(inputs, 2)[0])
    structure = jprune.units(graph, where=READ)
    curves = search.sensitivity(
        fn, params, first[:1], structure=structure, distance=apart, levels=8
    )
    fit = search.fit(curves, {"multiply_adds": left})
    return jprune.one_shot(
        fn,
        params,
        first,
        fit.sparsity,
        structure=structure,
        allocation=allocations.fitted(fit),
        weights=lambda ids, mask: mask,
    )


def outputs(model: Model, inputs: Batch) -> np.ndarray:
    """Embeddings of unit length, 250 sentences at a time."""
    fn = jax.jit(model.fn)
    found = [fn(model.params, *part) for part in parts(inputs, 250)]
    e = np.concatenate(found)
    return e / np.linalg.norm(e, axis=-1, keepdims=True)


def neighbours(e: np.ndarray, number: int) -> np.ndarray:
    """The most similar other sentences of each, ``[n, number]``."""
    similar = e @ e.T
    np.fill_diagonal(similar, -2)
    return np.argsort(-similar, axis=-1)[:, :number]


class Judged(NamedTuple):
    """On test sentences."""

    cosine: float
    worst: float
    nearest: float  # in percent
    of_ten: float
    noisy: float


def judge(
    model: Model, dense: np.ndarray, inputs: Batch, noisy: Batch
) -> Judged:
    e = outputs(model, inputs)
    found = (dense * e).sum(-1)
    a, b = neighbours(dense, 10), neighbours(e, 10)
    same = [
        len({*x} & {*y}) for x, y in zip(a.tolist(), b.tolist(), strict=True)
    ]
    return Judged(
        float(found.mean()),
        float(np.sort(found)[: len(found) // 20].mean()),
        100 * float(np.mean(a[:, 0] == b[:, 0])),
        float(np.mean(same)),
        float((e * outputs(model, noisy)).sum(-1).mean()),
    )


def without_a_word(lines: Sequence[str]) -> list[str]:
    """One word of each sentence is left out, but for those of one word."""
    rng = np.random.default_rng(0)
    found = []
    for line in lines:
        words = line.split()
        if len(words) > 1:
            del words[rng.integers(len(words))]
        found.append(" ".join(words))
    return found


def row(name: str, found: Sequence[Judged], fast: Sequence[Any] = ()) -> None:
    cells = [
        mean(column, digits)
        for column, digits in zip(
            zip(*found, strict=True), (3, 3, 1, 2, 3), strict=True
        )
    ]
    cells += [mean(column, 2) for column in zip(*fast, strict=True)]
    print(f"{name:11}" + "".join(f"{x:>16}" for x in cells), flush=True)


def ship(model: Model, inputs: Batch) -> None:
    """Saved, loaded, and run by others."""
    one = parts(inputs, 1)[0]
    wanted = np.asarray(model.fn(model.params, *one))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "small.zip"
        jprune.export.save(file, *model, *one)
        bundle = jprune.export.load(file)
        error = np.abs(bundle.fn(bundle.params, *one) - wanted).max()
        size = file.stat().st_size / 2**20
        print(f"saved: {size:.0f} MiB; loaded, largest error {error:.0e}")
        try:
            import onnxruntime

            file = Path(folder) / "small.onnx"
            jprune.export.to_onnx(file, *model, *one)
            session = onnxruntime.InferenceSession(file)
            feed = dict(zip(("args_0", "args_1"), one, strict=True))
            error = np.abs(session.run(None, feed)[0] - wanted).max()
            print(f"by onnxruntime {onnxruntime.__version__}: {error:.0e}")
        except ImportError as missing:
            print(f"not run by onnxruntime: {missing}")


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    for flag in ("model", "text"):  # a folder; a file of sentences
        given = os.environ.get(flag.upper())
        add(f"--{flag}", default=given, required=not given)
    add("--left", type=float, nargs="+", default=[0.5], help="multiply-adds")
    add("--steps", type=int, default=1200, help="of distillation")
    add("--seeds", type=int, default=3)
    args = parser.parse_args(argv)
    begin, busy = time.perf_counter(), time.process_time()
    lines = read_lines(args.text)
    order = np.random.default_rng(0).permutation(len(lines))
    lines = [lines[i] for i in order]  # the file is sorted by alphabet
    model = encoder(args.model)

    def read(texts: Sequence[str]) -> Batch:
        return sentences(args.model, texts, LENGTH)

    test, noisy = read(lines[TEST]), read(without_a_word(lines[TEST]))
    dense = outputs(model, test)
    for left in args.left:
        found: dict[str, list[Judged]] = {"repaired": [], "distilled": []}
        fast, minutes = [], []
        for seed in tqdm(range(args.seeds), f"{left:.0%}", leave=False):
            start = time.perf_counter()
            rng = np.random.default_rng(seed)
            train = read([lines[i] for i in rng.permutation(4000)])
            result = pruned(model, train, left)
            small = jprune.compact(
                model.fn, result.params, *parts(test, 2)[0], masks=result.masks
            )
            minutes.append([(time.perf_counter() - start) / 60])
            repaired = Model(small.fn, small.params)
            found["repaired"].append(judge(repaired, dense, test, noisy))
            fast.append(faster(model, repaired, *test, rounds=30))
            final = repaired
            if not args.steps:
                continue
            start = time.perf_counter()
            schedule = optax.cosine_decay_schedule(RATE, args.steps)
            finetune = jprune.distill(
                *model,
                parts(train, BATCH),
                optax.adam(schedule),
                args.steps,
                distance=apart,
            )
            trained = finetune(small.fn, small.params, None)
            minutes[-1].append((time.perf_counter() - start) / 60)
            final = Model(small.fn, trained)
            found["distilled"].append(judge(final, dense, test, noisy))
        print(f"\n{left:.0%} of the multiply-adds, {args.seeds} seeds")
        cost = jprune.report.cost(
            model.fn, result.params, *parts(test, 1)[0], masks=result.masks
        )
        print(cost)
        names = ("cosine", "worst", "nearest", "of ten", "noisy")
        served = (f"batch {n}" for n in SERVED)
        print(f"{'':11}" + "".join(f"{x:>16}" for x in (*names, *served)))
        row("dense", [judge(model, dense, test, noisy)])
        row("repaired", found["repaired"], fast)
        if args.steps:
            row("distilled", found["distilled"], fast)
        pruning, *training = np.mean(minutes, 0)
        spent = f"minutes: {pruning:.1f} to search, prune, repair and compact"
        for each in training:
            spent += f", {each:.1f} to distil ({args.steps} steps)"
        print(spent)
        if args.steps:
            ship(final, test)
    if args.steps:
        config = json.loads((Path(args.model) / "config.json").read_text())
        other = module(model.params, config["num_attention_heads"])
        turned = np.abs(outputs(other, test) - dense).max()
        result = pruned(other, train, args.left[-1])
        small = jprune.compact(
            other.fn, result.params, *parts(test, 2)[0], masks=result.masks
        )
        one = judge(Model(small.fn, small.params), dense, test, noisy)
        print(
            f"\nas a module of NNX: largest difference {turned:.0e}; "
            f"repaired, cosine {one.cosine:.3f}"
        )
    print(
        f"\n{time.perf_counter() - begin:.0f} s, "
        f"{time.process_time() - busy:.0f} s of processors; "
        f"jax {jax.__version__}, {jax.devices()[0].platform}"
    )


if __name__ == "__main__":
    main()
