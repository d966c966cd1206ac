"""
Prune a trained model
=====================

You have a trained model and some inputs, but no time, labels or code to train
it again. :func:`jprune.one_shot` prunes half of its units in seconds, and
changes the weights that stay so that the outputs of each layer change as little
as possible. :func:`jprune.compact` then removes the units, and returns a
smaller model.
"""

import jax
import numpy as np
import optax
from matplotlib import pyplot as plt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import jprune
from jprune.models import MLP

# %%
# A trained model
# ---------------
#
# In your case this comes from a checkpoint. Here a perceptron learns
# scikit-learn's digits, in one compiled loop.

x, y = load_digits(return_X_y=True)
x, x_test, y, y_test = train_test_split(
    (x / 16).astype(np.float32), y, random_state=0
)
model = MLP((256, 128, 10))


def train(params, steps=1000):
    tx = optax.adam(2e-3)

    def loss(params, x, y):
        logits = model.apply(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @jax.jit
    def update(params, state, x, y):
        updates, state = tx.update(jax.grad(loss)(params, x, y), state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    rng = np.random.default_rng(0)
    for _ in range(steps):
        rows = rng.integers(len(x), size=128)
        params, state = update(params, state, x[rows], y[rows])
    return params


predict = jax.jit(model.apply)


def accuracy(fn, params):
    return float((fn(params, x_test).argmax(-1) == y_test).mean())


dense = train(jax.jit(model.init)(jax.random.key(0), x[:1]))
print(f"dense: {accuracy(predict, dense):.1%} of the test images are right")

# %%
# What can be removed
# -------------------
#
# A *unit* is what must be removed together: here a hidden neuron, with its
# column of one kernel, its bias, and its row of the next kernel.
# :func:`jprune.trace_units` finds the units from the program that JAX makes of
# your function. It lists as "frozen" what can't be removed: the pixels come in
# as they are, and the ten outputs are what you asked for.

graph = jprune.trace_units(model.apply, dense, x[:1])
print(graph)
units = jprune.units(graph)

# %%
# Pruning alone, and pruning with repair
# --------------------------------------
#
# The obvious way is to prune the units with the smallest weights.
# :func:`jprune.find_masks` does that and needs no data.
# :func:`jprune.one_shot` looks at 512 images, without their labels, and solves
# a least-squares problem for each layer: which units can the others replace,
# and what must the other weights become?

seen = x[:512]
sparsities = (0.25, 0.5, 0.75, 0.9)
by_size, repaired, results = [], [], {}
for sparsity in sparsities:
    masks = jprune.find_masks(dense, sparsity, structure=units)
    by_size.append(accuracy(predict, jprune.apply_masks(dense, masks)))
    result = jprune.one_shot(
        model.apply, dense, [seen], sparsity, structure=units
    )
    repaired.append(accuracy(predict, result.params))
    results[sparsity] = result

fig, ax = plt.subplots(figsize=(6, 3), layout="constrained")
ax.plot(sparsities, repaired, "o-", label="one_shot: pruned and repaired")
ax.plot(sparsities, by_size, "s-", label="smallest weights pruned")
ax.axhline(accuracy(predict, dense), color="tab:grey", ls=":", label="dense")
ax.set(xlabel="fraction of units pruned", ylabel="test accuracy")
ax.legend()
plt.show()

# %%
# Half of the units
# -----------------
#
# ``result.errors`` tells how much the outputs of each layer have changed: their
# relative squared error, when units are only masked, and after the repair.

result = results[0.5]
print(result.errors)

# %%
# Remove the units from the arrays
# --------------------------------
#
# Up to here the arrays have their old shapes, with zeros in them.
# :func:`jprune.compact` removes the units. ``certify`` runs the masked and the
# smaller model on your inputs and on random ones, and reports the largest
# difference.

small = jprune.compact(model.apply, result.params, x[:1])
print(small)
print(small.certify(x_test))

# %%
# What you gain
# -------------
#
# ``small.fn(small.params, x)`` takes the place of ``model.apply(params, x)``.
# Speed depends on your machine; :func:`jprune.report.speed` measures both
# models in turn.

before = accuracy(predict, dense)
after = accuracy(small.fn, small.params)
print(f"test accuracy: {before:.1%} -> {after:.1%}, without any training")
models = {"dense": (model.apply, dense), "small": (small.fn, small.params)}
print(jprune.report.speed(models, x_test))

# %%
# Next: :doc:`automatic` finds out how much can be removed, instead of trying
# several sparsities as above. The guide :doc:`/one_shot` prunes single weights
# too, and says what to do about padding and BatchNorm.
