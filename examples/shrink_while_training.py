"""Units are pruned and then removed, and from there on each step costs less.

    python examples/shrink_while_training.py

An MLP 64-1024-1024-10 learns the digits while one schedule prunes its units,
to 80 % of the multiply-adds. Twice on the way it is compacted. Parameters,
moments, counts and the state of the pruner go on at the new width, in a step
that is compiled anew; sparsities stay fractions of the first model.
"""

import time
from itertools import pairwise

import jax
import optax
from common import accuracy, batches, cross_entropy, digits, flags, print_table

import jprune
from jprune.models import MLP

args = flags(
    __doc__,
    steps=(600, "steps of training"),
    width=(1024, "units of each hidden layer"),
    sparsity=(0.8, "of the multiply-adds, at the end"),
)
data = digits()
image = data.x[:1]
model = MLP((args.width, args.width, 10))
fn, params = model.apply, model.init(jax.random.key(0), image)
first = jprune.trace_units(fn, params, image)
ramp = optax.polynomial_schedule(0.0, args.sparsity, 3, args.steps // 3)
rate = optax.cosine_decay_schedule(2e-3, args.steps)


def optimizer(fn, params):
    """For the model as it is now; the schedules are the same in each."""
    graph = jprune.trace_units(fn, params, image)
    units = jprune.units(graph, by="multiply_adds", of=first)
    pruner = jprune.prune(ramp, structure=units, every=10)
    return optax.chain(optax.adam(rate), pruner)


def make_step(fn, tx):
    @jax.jit
    def step(params, state, x, y):
        def loss(params):
            return cross_entropy(fn(params, x), y)

        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    return step


rows, errors = [], []
tx = optimizer(fn, params)
state = tx.init(params)
stages = [0, args.steps // 6, args.steps // 3, args.steps]
for begin, end in pairwise(stages):
    step = make_step(fn, tx)
    for number, batch in enumerate(batches(data, range(begin, end))):
        params, state = step(params, state, *batch)
        if number == 0:  # it has compiled
            jax.block_until_ready(params)
            start = time.perf_counter()
    jax.block_until_ready(params)
    took = 1e3 * (time.perf_counter() - start) / (end - begin - 1)
    cost = jprune.report.cost(fn, params, image).dense.multiply_adds
    score = accuracy(fn(params, data.x_test), data.y_test)
    cells = (f"{begin} to {end}", f"{cost:,}", f"{took:.2f}", f"{score:.1%}")
    rows.append(cells)

    # What is pruned by now is removed, here and in all of the state.
    masks = jprune.get_masks(state)
    small = jprune.compact(fn, params, image, masks=masks)
    errors.append(small.certify(data.x_test[:32]).error)
    fn, params, state = small.fn, small.params, small.take(state)
    tx = optimizer(fn, params)

print_table(("steps", "multiply-adds", "ms a step", "test accuracy"), rows)
print(f"\nlargest error of a compaction: {max(errors):.0e}")
print(f"units that are left: {small.plan.sizes}")
