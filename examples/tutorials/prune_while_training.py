"""
Prune while you train
=====================

You are about to train a network, and want 95 % of its weights to be zero at
the end, for about a point of accuracy. You add one line to your optimizer.
Weights are then removed during the training that you run anyway, so the others
have time to adapt.
"""

import tempfile
from pathlib import Path

import jax
import numpy as np
import optax
from matplotlib import pyplot as plt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import jprune
from jprune.models import MLP

# %%
# Data, model, loss
# -----------------
#
# Nothing here is special to pruning. The data are 1,797 images of 8 x 8
# pixels, a quarter of them kept for the test. The model is a small perceptron
# in Flax; any other function of a tree of parameters would do.

x, y = load_digits(return_X_y=True)
x, x_test, y, y_test = train_test_split(
    (x / 16).astype(np.float32), y, random_state=0
)
model = MLP((300, 100, 10))


def loss(params, x, y):
    logits = model.apply(params, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


predict = jax.jit(model.apply)


def accuracy(params):
    return float((predict(params, x_test).argmax(-1) == y_test).mean())


# %%
# The training loop
# -----------------
#
# This is a plain optax loop. It records the accuracy and the sparsity now and
# then, for the picture below. :func:`jprune.get_masks` reads the masks from
# the optimizer's state, and :func:`jprune.measure_sparsity` gives the fraction
# that is pruned.

STEPS = 1000


def train(tx, watch=lambda step, params, state: None):
    params = jax.jit(model.init)(jax.random.key(0), x[:1])
    state = tx.init(params)

    @jax.jit
    def update(params, state, x, y):
        grads = jax.grad(loss)(params, x, y)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    rng = np.random.default_rng(0)
    for step in range(STEPS):
        rows = rng.integers(len(x), size=128)
        params, state = update(params, state, x[rows], y[rows])
        if (step + 1) % 50 == 0:
            watch(step + 1, params, state)
    return params, state


# %%
# A dense network, to compare with
# --------------------------------

dense, _ = train(optax.adamw(2e-3))
print(f"dense: {accuracy(dense):.1%} of the test images are right")

# %%
# The same with one more line
# ---------------------------
#
# ``jprune.prune`` goes at the end of the chain. Its sparsity is a number or
# any optax schedule. The usual choice is the cubic ramp: it removes many
# weights early, while that is easy, and few at the end. The arguments of
# ``polynomial_schedule`` are the first and the last sparsity, the degree, the
# number of steps, and the step at which it starts. Here the ramp takes the
# steps 200 to 700, and the last 300 steps train the weights that are left.
# ``every=10`` chooses new masks at every tenth step.

ramp = optax.polynomial_schedule(0.0, 0.95, 3, 500, 200)
tx = optax.chain(optax.adamw(2e-3), jprune.prune(ramp, every=10))

history = []


def watch(step, params, state):
    sparsity = jprune.measure_sparsity(jprune.get_masks(state))
    history.append((step, float(sparsity), accuracy(params)))


pruned, state = train(tx, watch)
masks = jprune.get_masks(state)

# %%
# The accuracy stays up while the weights go:

steps, sparsities, accuracies = zip(*history, strict=True)
fig, ax = plt.subplots(figsize=(6, 3), layout="constrained")
ax.plot(steps, sparsities, label="sparsity", color="tab:orange")
ax.plot(steps, accuracies, label="test accuracy", color="tab:blue")
ax.axhline(accuracy(dense), color="tab:grey", ls=":", label="dense network")
ax.set(xlabel="step", ylim=(0, 1.03))
ax.legend(loc="lower right")
plt.show()

# %%
# Which weights went
# ------------------
#
# ``kept`` is what the masks keep, ``zeros`` counts the weights that really are
# zero. Biases are left alone by default. The last kernel is small, and keeps a
# larger part: that is the default allocation, which spares small layers.

print(jprune.summarize(pruned, masks))

# %%
# What you gain
# -------------
#
# Zeros don't have to be stored. :func:`jprune.export.save_sparse` writes the
# weights that are left and one bit for each place. The network is not faster,
# because its arrays still have their dense shapes. To get a faster one remove
# whole units, as in :doc:`shrink_while_training` or :doc:`automatic`.

with tempfile.TemporaryDirectory() as folder:
    sizes = {}
    for name, params, keep in (
        ("dense", dense, None),
        ("pruned", pruned, masks),
    ):
        file = Path(folder) / f"{name}.safetensors"
        jprune.export.save_sparse(file, params, keep)
        sizes[name] = file.stat().st_size

print(f"test accuracy: {accuracy(dense):.1%} -> {accuracy(pruned):.1%}")
print(f"weights left: {1 - float(jprune.measure_sparsity(masks)):.1%}")
print(
    f"file: {sizes['dense']:,} -> {sizes['pruned']:,} bytes, "
    f"{sizes['dense'] / sizes['pruned']:.0f} times smaller"
)
