"""
Save a model and run it elsewhere
=================================

Your pruned model has to run on a machine that does not have its source, and
perhaps not Flax. You remove the pruned units, save the smaller model to one
file, load it there, and check that it computes the same.
"""

import subprocess
import sys
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
# A model whose units are pruned while it trains
# ----------------------------------------------
#
# ``jprune.units`` makes the pruner choose whole neurons instead of single
# weights. Their fraction rises to 75 %, from step 150 to 600.

x, y = load_digits(return_X_y=True)
x, x_test, y, y_test = train_test_split(
    (x / 16).astype(np.float32), y, random_state=0
)
model = MLP((256, 128, 10))
params = jax.jit(model.init)(jax.random.key(0), x[:1])
graph = jprune.trace_units(model.apply, params, x[:1])
ramp = optax.polynomial_schedule(0.0, 0.75, 3, 450, 150)
pruner = jprune.prune(ramp, structure=jprune.units(graph), every=10)
tx = optax.chain(optax.adamw(3e-3), pruner)
state = tx.init(params)


@jax.jit
def update(params, state, x, y):
    def loss(params):
        logits = model.apply(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    updates, state = tx.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state


rng = np.random.default_rng(0)
for _ in range(900):
    rows = rng.integers(len(x), size=128)
    params, state = update(params, state, x[rows], y[rows])

# %%
# Remove what is pruned
# ---------------------

masks = jprune.get_masks(state)
small = jprune.compact(model.apply, params, x[:1], masks=masks)
print(small)

# %%
# Save
# ----
#
# The file holds the compiled program (StableHLO), the parameters, and what is
# needed to check them. There is no pickle in it. A program is made for certain
# shapes: the symbol ``batch`` leaves the size of the batch open. The dense
# model is saved too, to compare the sizes.

folder = Path(tempfile.mkdtemp())
(batch,) = jax.export.symbolic_shape("batch")
any_batch = jax.ShapeDtypeStruct((batch, 64), np.float32)
small.save(folder / "small.zip", any_batch)
jprune.export.save(folder / "dense.zip", model.apply, params, any_batch)

# %%
# Load, elsewhere
# ---------------
#
# This starts another Python process in which Flax cannot be imported.
# ``verify`` draws inputs from a stored seed and compares the outputs with
# those of the machine that saved the model.

np.save(folder / "images.npy", x_test)
ELSEWHERE = """
import sys
sys.modules["flax"] = None  # as if it were not installed
import numpy as np, jprune
bundle = jprune.export.load("small.zip")
print("largest error of verify():", bundle.verify().error)
np.save("logits.npy", bundle.fn(bundle.params, np.load("images.npy")))
"""
there = subprocess.run(
    [sys.executable, "-c", ELSEWHERE],
    cwd=folder,
    check=True,
    capture_output=True,
    text=True,
)
print(there.stdout)

# %%
# What you gain
# -------------

predict = jax.jit(model.apply)
logits = np.load(folder / "logits.npy")
before = float((predict(params, x_test).argmax(-1) == y_test).mean())
after = float((logits.argmax(-1) == y_test).mean())
sizes = {
    name: (folder / f"{name}.zip").stat().st_size for name in ("dense", "small")
}
print(f"test accuracy: {before:.1%} -> {after:.1%} in the other process")
print(f"file: {sizes['dense']:,} -> {sizes['small']:,} bytes")
models = {"dense": (model.apply, params), "small": (small.fn, small.params)}
print(jprune.report.speed(models, x_test))

fig, ax = plt.subplots(figsize=(6, 1.8), layout="constrained")
bars = ax.barh(list(sizes), [size / 1e3 for size in sizes.values()])
ax.bar_label(bars, fmt="%.0f kB", padding=3)
ax.set(xlabel="kB", xlim=(0, sizes["dense"] / 1e3 * 1.15))
ax.invert_yaxis()
plt.show()

# %%
# The guide :doc:`/export` also writes ONNX and LiteRT, and files for weights
# with scattered zeros.
