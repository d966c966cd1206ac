"""Digits, pruned to 90 % while a plain optax loop trains:

python examples/quickstart.py
"""

import argparse

import jax
import numpy as np
import optax
from sklearn import datasets, model_selection
from tqdm import trange

import jprune.models

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=1000, help="of training")
steps = parser.parse_args().steps

x, y = datasets.load_digits(return_X_y=True)
x, x_new, y, y_new = model_selection.train_test_split(x / 16, y, random_state=0)
model = jprune.models.MLP((64, 64, 10))
params = model.init(jax.random.key(0), x)
ramp = optax.polynomial_schedule(0.0, 0.9, 3, steps // 2, steps // 4)
tx = optax.chain(optax.adamw(3e-3), jprune.prune(ramp, every=10))
state = tx.init(params)


def loss(params, x, y):
    logits = model.apply(params, x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


@jax.jit
def step(params, state, x, y):
    updates, state = tx.update(jax.grad(loss)(params, x, y), state, params)
    return optax.apply_updates(params, updates), state


for i in trange(steps, desc="training"):
    batch = np.random.default_rng(i).integers(len(x), size=128)
    params, state = step(params, state, x[batch], y[batch])

print(jprune.summarize(params, jprune.get_masks(state)))
accuracy = (model.apply(params, x_new).argmax(-1) == y_new).mean()
print(f"accuracy on {len(y_new)} digits not seen: {accuracy:.1%}")
