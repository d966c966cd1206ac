"""bfloat16 to compute with, float32 to train: the zeros of both copies.

    python examples/mixed_precision.py

The training loop holds the weights in float32, casts them to bfloat16 for each
forward pass, and multiplies the loss by a scale that adapts itself. A step with
infinite gradients is skipped. The pruner sees the float32 weights; 0 in float32
is 0 in bfloat16, so that the second copy needs no masks. The tables say what
happens otherwise.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from common import accuracy, batches, cross_entropy, digits, flags, print_table

import jprune
from jprune.models import MLP

args = flags(
    __doc__, steps=(200, "steps of each training"), sparsity=(0.9, "at the end")
)
data = digits()
model = MLP((64, 64, 10))
ramp = optax.polynomial_schedule(
    0.0, args.sparsity, 3, args.steps // 2, args.steps // 4
)


class Scale(NamedTuple):
    """What the loss is multiplied by, and good steps since it changed."""

    value: jax.Array
    good: jax.Array


def adapt(scale, finite, every=20):
    """Half as large after an overflow, twice as large after good steps."""
    grow = finite & (scale.good + 1 >= every)
    value = jnp.where(finite, scale.value, scale.value / 2)
    return Scale(
        jnp.where(grow, 2 * value, value),
        jnp.where(finite & ~grow, scale.good + 1, 0),
    )


def scaled_grads(half, scale, x, y, dtype):
    """Gradients of the loss times ``scale``, of the 16-bit copy."""

    def loss(half):
        logits = model.apply(half, x.astype(dtype))
        return scale * cross_entropy(logits.astype(jnp.float32), y)

    return jax.grad(loss)(half)


def make_step(tx, dtype, seen, skips):
    """A training step with a scaled loss."""

    @jax.jit
    def step(params, state, scale, x, y):
        half = optax.tree.cast(params, dtype)  # of bfloat16 weights: the same
        grads = scaled_grads(half, scale.value, x, y, dtype)
        grads = optax.tree.cast(grads, jnp.float32)
        grads = optax.tree.scale(1 / scale.value, grads)
        finite = jnp.isfinite(optax.tree.norm(grads))
        # The pruner's zeros are exact in the copy that it sees here.
        updates, new = tx.update(
            grads, state, half if seen == "half" else params
        )
        after = optax.apply_updates(params, updates), new
        if not skips:  # the loop has to skip the step, if the chain does not
            # Whole: weights, moments, and the pruner's masks and count.
            after = optax.tree.where(finite, after, (params, state))
        return *after, adapt(scale, finite), finite

    return step


class MasterState(NamedTuple):
    """The float32 weights, and the state of the optimizer that moves them."""

    master: optax.Params
    inner: optax.OptState


def with_master(inner):
    """Trains float32 weights in its state; parameters are those, rounded."""

    def init(params):
        master = optax.tree.cast(params, jnp.float32)
        return MasterState(master, inner.init(master))

    def update(grads, state, params):
        updates, new = inner.update(grads, state.inner, state.master)
        master = optax.apply_updates(state.master, updates)
        updates = jax.tree.map(
            lambda q, p: q.astype(p.dtype).astype(q.dtype) - p, master, params
        )
        return updates, MasterState(master, new)

    return optax.GradientTransformation(init, update)


def nonzero(params, masks):
    """How many pruned weights are not exactly 0."""
    clean = jprune.apply_masks(params, masks)
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(clean), strict=True)
    return sum(int(jnp.sum(p != q)) for p, q in pairs)


def master_in(state):
    """The float32 weights that ``with_master`` keeps in a state."""
    (found,) = (
        part.master
        for part in jax.tree.leaves(
            state, is_leaf=lambda x: isinstance(x, MasterState)
        )
        if isinstance(part, MasterState)
    )
    return found


def train(tx, name, dtype=jnp.bfloat16, weights=jnp.float32, seen="master"):
    """Looks at both copies after each step; returns a row of the table."""
    params = optax.tree.cast(model.init(jax.random.key(0), data.x), weights)
    state, scale = tx.init(params), Scale(jnp.float32(2**20), jnp.int32(0))
    step = make_step(tx, dtype, seen, "apply_if_finite" in name)
    half = full = skipped = 0
    for x, y in batches(data, range(args.steps), name):
        params, state, scale, finite = step(params, state, scale, x, y)
        masks, skipped = jprune.get_masks(state), skipped + int(~finite)
        half = max(half, nonzero(optax.tree.cast(params, dtype), masks))
        if weights == jnp.float32:
            full = max(full, nonzero(params, masks))
        elif "master" in name:
            full = max(full, nonzero(master_in(state), masks))
        else:
            full = "-"
    logits = model.apply(optax.tree.cast(params, dtype), data.x_test)
    score = f"{accuracy(logits, data.y_test):.1%}"
    held = f"{jprune.measure_sparsity(masks):.1%}"
    return name, held, full, half, skipped, score


adam, pruner = optax.adam(3e-3), jprune.prune(ramp, every=5)
last = optax.chain(adam, pruner)
rows = [
    train(last, "float32, bfloat16 pass"),
    train(last, "float32, float16 pass", jnp.float16),
    train(last, "the pruner sees the bfloat16 copy", seen="half"),
    train(last, "bfloat16 alone", weights=jnp.bfloat16),
    train(
        with_master(last),
        "with_master(chain(adam, pruner))",
        weights=jnp.bfloat16,
    ),
    train(
        optax.chain(with_master(adam), pruner),
        "chain(with_master(adam), pruner)",
        weights=jnp.bfloat16,
    ),
    train(
        optax.apply_if_finite(last, 100),
        "apply_if_finite, float16 pass",
        jnp.float16,
    ),
]
print_table(
    (
        *("weights", "sparsity", "not 0: float32", "16 bits"),
        *("skipped", "accuracy"),
    ),
    rows,
)
