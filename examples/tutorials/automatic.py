"""
Compress a model automatically
==============================

You have a trained model, and can say what it may lose: one point of accuracy,
for example. You don't want to choose a method, a sparsity or a layer.
:func:`jprune.compress` finds the smallest model that keeps within your limit,
and tests it on data that the search has never seen.
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
# Half of the digits train the model. The other half is the *holdout*, which
# nothing else looks at. It decides how much is removed. The more samples it
# has, the closer the loss can be measured, and the smaller is the model that
# you get.

x, y = load_digits(return_X_y=True)
x, x_held, y, y_held = train_test_split(
    (x / 16).astype(np.float32), y, test_size=0.5, random_state=0, stratify=y
)
model = MLP((256, 128, 10))
STEPS = 1000
tx = optax.adam(optax.cosine_decay_schedule(2e-3, STEPS))


def loss(params, x, y):
    logits = model.apply(params, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


@jax.jit
def update(params, state, x, y):
    updates, state = tx.update(jax.grad(loss)(params, x, y), state, params)
    return optax.apply_updates(params, updates), state


params = jax.jit(model.init)(jax.random.key(0), x[:1])
state = tx.init(params)
rng = np.random.default_rng(0)
for _ in range(STEPS):
    rows = rng.integers(len(x), size=64)
    params, state = update(params, state, x[rows], y[rows])

# %%
# One call
# --------
#
# - ``[(x, y)]`` is a list of one batch, to search with.
# - ``inputs=1`` says that the model reads the first entry of a batch, ``x``.
#   The search does not use labels.
# - ``score`` says of each holdout sample whether the model is right.
# - ``tolerance=0.02`` allows a loss of two points.
# - ``budgets`` are the sizes to try, as fractions of the multiply-adds. There
#   are more by default.

result = jprune.compress(
    model.apply,
    params,
    [(x, y)],
    inputs=1,
    holdout=[(x_held, y_held)],
    score=lambda logits, x, y: logits.argmax(-1) == y,
    tolerance=0.02,
    budgets=(0.5, 0.3, 0.2, 0.15, 0.1, 0.07, 0.05),
)

# %%
# What it tried
# -------------
#
# ``compress`` goes from large models to small ones and stops at the first that
# fails. It removes whole units from each, repairs the rest, and judges it by
# the holdout. All columns are in percent or points. ``loss`` is what was
# measured; ``at most`` is what the loss on new data stays below, with a
# confidence of 95 %. A model is kept if this upper limit is within your
# tolerance. The bars of the picture reach up to that limit.

print(result.front)

fig, ax = plt.subplots(figsize=(6, 3.2), layout="constrained")
jprune.plot.front(result.front, ax=ax)
ax.set_xscale("log")
plt.show()

# %%
# What you gain
# -------------
#
# Call the smaller model by ``result.small.fn(result.small.params, x)``, in
# place of ``model.apply(params, x)``. Its speed depends on your machine.

print(result)
models = {
    "dense": (model.apply, params),
    "small": (result.small.fn, result.small.params),
}
print(jprune.report.speed(models, x_held))

# %%
# Next steps:
#
# - Pass ``finetune=jprune.distill(...)``. Each candidate is then trained
#   briefly, so that more can be removed.
# - The guide :doc:`/automatic` shows how to search for the fastest model
#   instead of the smallest, and how to look at the worst class.
# - :doc:`ship_it` writes ``result.small`` to a file.
