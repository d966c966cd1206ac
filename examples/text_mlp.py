"""Language: a bag of hashed words, embedded, and an MLP that is pruned.

    python examples/text_mlp.py

Sentences about four topics are generated from a small grammar; of three nouns
some are from another topic. Words are hashed to rows of an embedding. Leaves
named "embed..." are kept by default: a row that is seldom read has small
weights and matters all the same.
"""

import zlib

import jax
import numpy as np
import optax
from common import Data, accuracy, batches, cross_entropy, flags, print_table
from flax import linen as nn

import jprune
from jprune.models import MLP

TOPICS = {
    "sea": "ship sail anchor harbour gull wave captain lighthouse crab tide",
    "kitchen": "oven soup ladle cook onion kettle bread butter spoon recipe",
    "sky": "comet planet telescope moon orbit galaxy rocket star eclipse",
    "garden": "rose spade hedge bee tulip gardener lawn seed apple snail",
}
ADJECTIVES = "old small bright quiet lost green heavy strange"
VERBS = "waits moves hides turns rests shines stops appears"
PLACES = "near behind above under beside beyond"
BUCKETS = 512  # rows of the embedding

args = flags(
    __doc__,
    steps=(600, "steps of each training"),
    sparsity=(0.95, "at the end"),
)


def sentence(rng: np.random.Generator) -> tuple[str, int]:
    topic = rng.integers(len(TOPICS))
    other = rng.integers(len(TOPICS), size=3)
    chosen = np.where(rng.random(3) < 0.7, topic, other)
    nouns = list(TOPICS.values())
    kinds = [ADJECTIVES, VERBS, PLACES, *(nouns[i] for i in chosen)]
    words = [rng.choice(kind.split()) for kind in kinds]
    adjective, verb, place, first, second, third = words
    start = f"the {adjective} {first} {verb} {place} the"
    return f"{start} {second} and the {third}", topic


def hashed(text: str) -> list[int]:
    """A bucket for each word: no vocabulary is stored."""
    return [zlib.crc32(word.encode()) % BUCKETS for word in text.split()]


rng = np.random.default_rng(0)
texts, labels = zip(*(sentence(rng) for _ in range(4000)), strict=True)
words, labels = np.array([hashed(text) for text in texts]), np.array(labels)
data = Data(words[:3000], labels[:3000], words[3000:], labels[3000:])


class BagOfWords(nn.Module):
    @nn.compact
    def __call__(self, words: jax.Array) -> jax.Array:
        bag = nn.Embed(BUCKETS, 32)(words).mean(-2)
        return MLP((64, 64, len(TOPICS)))(bag)


model = BagOfWords()


def train(tx, name):
    @jax.jit
    def step(params, state, x, y):
        def loss(params):
            return cross_entropy(model.apply(params, x), y)

        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    params = model.init(jax.random.key(0), data.x)
    state = tx.init(params)
    for x, y in batches(data, range(args.steps), name):
        params, state = step(params, state, x, y)
    return params, state


ramp = optax.polynomial_schedule(
    0.0, args.sparsity, 3, args.steps // 2, args.steps // 4
)
dense, _ = train(optax.adamw(3e-3), "dense")
params, state = train(
    optax.chain(optax.adamw(3e-3), jprune.prune(ramp, every=10)), "pruned"
)
masks = jprune.get_masks(state)
print(jprune.summarize(params, masks))
print()
rows = []
for name, tree in (("dense", dense), ("pruned", params)):
    score = accuracy(model.apply(tree, data.x_test), data.y_test)
    rows.append((name, f"{score:.1%}"))
print_table((f"{len(data.y_test)} sentences not seen", "accuracy"), rows)
print()
topics = list(TOPICS)
guesses = model.apply(params, data.x_test[:4]).argmax(-1)
for text, y, guess in zip(texts[3000:], data.y_test, guesses, strict=False):
    print(f"{text}\n    topic: {topics[y]}, the network says: {topics[guess]}")
