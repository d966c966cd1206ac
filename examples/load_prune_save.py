"""A trained checkpoint in, a pruned one out: one shot, then fine-tuning.

    python examples/load_prune_save.py
    python examples/load_prune_save.py --input dense.safetensors --output p.st

A safetensors file is a flat dict of arrays, which is a pytree, so jprune takes
it as it is. Without --input a network is trained first.
"""

import tempfile
import zlib
from pathlib import Path

import jax
import optax
from common import accuracy, batches, cross_entropy, digits, flags, print_table
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file, save_file

import jprune
from jprune.models import MLP

args = flags(
    __doc__,
    steps=(600, "steps of each training"),
    sparsity=(0.9, "of all kernels together"),
    input=("", "a safetensors file of an MLP with 64 inputs, 10 outputs"),
    output=("", "the file to write"),
)
data = digits()


def logits(params, x):
    nested = unflatten_dict(params, sep=".")
    return MLP.from_params(nested).apply({"params": nested}, x)


def train(params, tx, name):
    @jax.jit
    def step(params, state, x, y):
        def loss(params):
            return cross_entropy(logits(params, x), y)

        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for x, y in batches(data, range(args.steps), name):
        params, state = step(params, state, x, y)
    return params


def save(params, file):
    save_file(jax.device_get(params), file)


folder = tempfile.TemporaryDirectory()
source = Path(args.input or Path(folder.name) / "dense.safetensors")
target = Path(args.output or Path(folder.name) / "pruned.safetensors")
if not args.input:
    fresh = MLP((64, 64, 10)).init(jax.random.key(0), data.x)["params"]
    fresh = flatten_dict(fresh, sep=".")
    save(train(fresh, optax.adamw(3e-3), "a dense network"), source)

dense = load_file(source)  # {"Dense_0.bias": ..., "Dense_0.kernel": ...}
masks = jprune.find_masks(
    dense, args.sparsity, allocation=jprune.allocations.global_ranking()
)
one_shot = jprune.apply_masks(dense, masks)
tx = optax.chain(optax.adamw(1e-3), jprune.keep_masks(masks))
tuned = train(one_shot, tx, "fine-tuning")
save(tuned, target)

pruned = load_file(target)  # what a user of the file gets: zeros, no masks
print(jprune.summarize(pruned))
print()
rows = []
for name, params, file in (
    ("dense", dense, source),
    ("one shot", one_shot, None),
    ("fine-tuned, from the file", pruned, target),
):
    sizes = ("", "")
    if file:
        content = file.read_bytes()
        sizes = (len(content), len(zlib.compress(content)))
    score = accuracy(logits(params, data.x_test), data.y_test)
    rows.append((name, f"{score:.1%}", *sizes))
print_table(("", "test accuracy", "bytes", "bytes, zipped"), rows)
print("\nZeros take as much room as numbers do, until the file is compressed.")
folder.cleanup()
