"""
Shrink while you train
======================

You train a wide network because it learns well, and want a narrow one in the
end. If its units are removed on the way, each step after that takes less time,
so the training gets cheaper as well as the model.
"""

import time

import jax
import numpy as np
import optax
from matplotlib import pyplot as plt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import jprune
from jprune.models import MLP

# %%
# A wide network
# --------------

x, y = load_digits(return_X_y=True)
x, x_test, y, y_test = train_test_split(
    (x / 16).astype(np.float32), y, random_state=0
)
model = MLP((1024, 1024, 10))
start = jax.jit(model.init)(jax.random.key(0), x[:1])
rate = optax.cosine_decay_schedule(2e-3, 400)

# %%
# The training step depends on ``fn``, the function of the model, as the
# function changes when the model shrinks. ``run`` returns the time of a step,
# without the first step, which compiles.


def run(fn, tx, params, state, steps):
    @jax.jit
    def update(params, state, x, y):
        def loss(params):
            logits = fn(params, x)
            return optax.softmax_cross_entropy_with_integer_labels(
                logits, y
            ).mean()

        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    for step in steps:
        rows = np.random.default_rng(step).integers(len(x), size=128)
        params, state = update(params, state, x[rows], y[rows])
        if step == steps[0]:
            jax.block_until_ready(params)
            begin = time.perf_counter()
    jax.block_until_ready(params)
    return params, state, (time.perf_counter() - begin) / (len(steps) - 1)


def accuracy(fn, params):
    return float((fn(params, x_test).argmax(-1) == y_test).mean())


# %%
# The dense training, to compare with
# -----------------------------------
#
# Forty steps are enough to know what a step takes.

tx = optax.adam(rate)
_, _, dense_step = run(model.apply, tx, start, tx.init(start), range(40))
print(f"a dense step takes {1e3 * dense_step:.1f} ms")

# %%
# Prune, remove, go on
# --------------------
#
# One schedule prunes units until step 120, when 80 % of the multiply-adds are
# gone. At steps 60 and 120 the model is compacted:
#
# 1. :func:`jprune.compact` removes the pruned units from function and
#    parameters.
# 2. ``small.take(state)`` cuts the optimizer's state in the same way: moments,
#    counts and the pruner's masks. Learning-rate and sparsity schedules go on
#    where they were.
# 3. The smaller model is traced again. With ``of=first`` sparsities stay
#    fractions of the first model, so that one schedule serves for the whole
#    training.

first = jprune.trace_units(model.apply, start, x[:1])
ramp = optax.polynomial_schedule(0.0, 0.8, 3, 120)


def optimizer(fn, params):
    graph = jprune.trace_units(fn, params, x[:1])
    units = jprune.units(graph, by="multiply_adds", of=first)
    pruner = jprune.prune(ramp, structure=units, every=10)
    return optax.chain(optax.adam(rate), pruner)


fn, params = model.apply, start
tx = optimizer(fn, params)
state = tx.init(params)
stages = []
for steps in (range(60), range(60, 121), range(121, 400)):
    params, state, seconds = run(fn, tx, params, state, steps)
    cost = jprune.report.cost(fn, params, x[:1]).dense.multiply_adds
    stages.append((len(steps), seconds, cost, accuracy(fn, params)))
    small = jprune.compact(fn, params, x[:1], masks=jprune.get_masks(state))
    fn, params, state = small.fn, small.params, small.take(state)
    tx = optimizer(fn, params)

# %%
# Each stage costs less than the one before
# -----------------------------------------

print("steps  multiply-adds  ms a step  test accuracy")
for count, seconds, cost, score in stages:
    print(f"{count:5}  {cost:13,}  {1e3 * seconds:9.1f}  {score:13.1%}")

fig, ax = plt.subplots(figsize=(6, 2.6), layout="constrained")
ends = np.cumsum([0, *(count for count, *_ in stages)])
for begin, end, (_, seconds, *_) in zip(ends, ends[1:], stages, strict=False):
    ax.bar(
        begin,
        1e3 * seconds,
        end - begin,
        align="edge",
        color="tab:blue",
        alpha=0.7,
    )
ax.axhline(1e3 * dense_step, color="tab:grey", ls=":", label="dense")
ax.set(xlabel="step", ylabel="ms a step", title="The area is the time it takes")
ax.legend()
plt.show()

# %%
# What you gain
# -------------

shrunk = sum(count * seconds for count, seconds, *_ in stages)
dense = 400 * dense_step
print(f"units left: {dict(small.plan.sizes)}")
print(f"test accuracy: {accuracy(fn, params):.1%}")
print(
    f"multiply-adds: {stages[0][2]:,} -> {stages[-1][2]:,}; "
    f"400 steps: {dense:.1f} s -> {shrunk:.1f} s, without compilation"
)

# %%
# The times are of the machine that built this page, and leave out compilation.
# Each new width is compiled again, which takes a second or so. Two or three
# stages are therefore enough, and a short training of a small model gains
# nothing. If you know the final width beforehand, train a model of that width
# as well and compare. The guide :doc:`/sparse_training` has both, measured on
# MNIST.
