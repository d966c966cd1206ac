"""Averages of weights are dense: mask them before you evaluate or save them.

    python examples/ema.py

A moving average remembers what weights were before they were pruned, and so
does the evaluation point of schedule-free optimizers. Both are cleaned by
apply_masks(average, get_masks(state)), with the masks of the training.
"""

import jax
import numpy as np
import optax
from common import accuracy, batches, cross_entropy, digits, flags, print_table

import jprune
from jprune.models import MLP

args = flags(
    __doc__, steps=(600, "steps of each training"), sparsity=(0.9, "at the end")
)
data = digits()
model = MLP((64, 64, 10))
ramp = optax.polynomial_schedule(
    0.0, args.sparsity, 3, args.steps // 2, args.steps // 4
)


def train(optimizer, name):
    """The end of a training: weights, their moving average, the state."""
    tx = optax.chain(optimizer, jprune.prune(ramp, every=10))

    @jax.jit
    def step(params, average, state, x, y):
        def loss(params):
            return cross_entropy(model.apply(params, x), y)

        updates, state = tx.update(jax.grad(loss)(params), state, params)
        params = optax.apply_updates(params, updates)
        average = optax.incremental_update(params, average, 0.01)
        return params, average, state

    params = average = model.init(jax.random.key(0), data.x)
    state = tx.init(params)
    for x, y in batches(data, range(args.steps), name):
        params, average, state = step(params, average, state, x, y)
    return params, average, state


rows, zeros = [], {}


def report(name, params):
    kernels = [p for p in jax.tree.leaves(params) if p.ndim == 2]
    kept = sum(np.count_nonzero(kernel) for kernel in kernels)
    zeros[name] = 1 - kept / sum(kernel.size for kernel in kernels)
    score = accuracy(model.apply(params, data.x_test), data.y_test)
    rows.append((name, f"{zeros[name]:.1%}", f"{score:.1%}"))


params, average, state = train(optax.adamw(3e-3), "adamw")
masks = jprune.get_masks(state)
report("adamw: weights", params)
report("adamw: moving average", average)
report("adamw: moving average, masked", jprune.apply_masks(average, masks))

schedule_free = optax.contrib.schedule_free_adamw(3e-2)
params, _, state = train(schedule_free, "schedule_free_adamw")
masks = jprune.get_masks(state)
# state[0] is that of the first link of the chain, the optimizer
point = optax.contrib.schedule_free_eval_params(state[0], params)
report("schedule_free: weights", params)
report("schedule_free: evaluation point", point)
report(
    "schedule_free: evaluation point, masked", jprune.apply_masks(point, masks)
)

print_table(("", "zeros in kernels", "test accuracy"), rows)
