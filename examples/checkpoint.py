"""Train, get killed, resume with Orbax: the same bits as without the accident.

    python examples/checkpoint.py

Trains three times: without interruption; in a process of its own that dies
without notice; and on from the last checkpoint that it had written. Masks are
part of the optimizer's state, so saving that state saves them.
"""

import os
import subprocess
import sys
import tempfile

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from common import accuracy, batches, cross_entropy, digits, flags, print_table

import jprune
from jprune.models import MLP

args = flags(
    __doc__,
    steps=(600, "steps of training"),
    every=(100, "steps between two checkpoints"),
    kill=(350, "the step after which the process dies"),
    folder=("", "where to write checkpoints, and then to die (internal)"),
)
data = digits()
model = MLP((64, 64, 10))
ramp = optax.polynomial_schedule(0.0, 0.9, 3, args.steps // 2, args.steps // 4)
tx = optax.chain(optax.adamw(3e-3), jprune.prune(ramp, every=10))


@jax.jit
def init():
    params = model.init(jax.random.key(0), data.x)
    return {"params": params, "opt_state": tx.init(params)}


@jax.jit
def train_step(train, x, y):
    def loss(params):
        return cross_entropy(model.apply(params, x), y)

    params = train["params"]
    updates, state = tx.update(
        jax.grad(loss)(params), train["opt_state"], params
    )
    return {"params": optax.apply_updates(params, updates), "opt_state": state}


def run(name, folder=None, kill=None):
    """Goes on from the last checkpoint in ``folder``, if there is one."""
    train, first = init(), 0
    manager = ocp.CheckpointManager(folder) if folder else None
    if manager and manager.latest_step():
        first = manager.latest_step()
        like = jax.eval_shape(init)
        train = manager.restore(first, args=ocp.args.StandardRestore(like))
    # Batches are drawn by the number of the step: they must resume too.
    for step, batch in enumerate(
        batches(data, range(first, args.steps), name), first + 1
    ):
        train = train_step(train, *batch)
        if manager and step % args.every == 0:
            manager.save(step, args=ocp.args.StandardSave(train))
            manager.wait_until_finished()
        if step == kill:
            os._exit(1)  # at once: nothing is written, nothing is closed
    if manager:
        manager.close()
    return train, first


if args.folder:
    run("killed", args.folder, args.kill)

with tempfile.TemporaryDirectory() as folder:
    straight, _ = run("uninterrupted")
    numbers = [f"--{name}={n}" for name, n in vars(args).items() if n]
    command = [sys.executable, __file__, *numbers, f"--folder={folder}"]
    subprocess.run(command)
    resumed, first = run("resumed", folder)


def same_bits(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(
        np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs
    )


print(f"killed after step {args.kill}, resumed from step {first}\n")
rows = []
for name, train in (("uninterrupted", straight), ("resumed", resumed)):
    masks = jprune.get_masks(train["opt_state"])
    score = accuracy(model.apply(train["params"], data.x_test), data.y_test)
    kept = sum(int(mask.sum()) for mask in jax.tree.leaves(masks))
    sparsity = jprune.measure_sparsity(masks)
    rows.append((name, kept, f"{sparsity:.1%}", f"{score:.1%}"))
print_table(("", "weights kept", "sparsity", "test accuracy"), rows)
print()
masks = [jprune.get_masks(t["opt_state"]) for t in (straight, resumed)]
identical = {
    "masks": same_bits(*masks),
    "weights": same_bits(straight["params"], resumed["params"]),
    "optimizer state": same_bits(straight["opt_state"], resumed["opt_state"]),
}
for name, same in identical.items():
    print(f"{name}: {'bit for bit the same' if same else 'DIFFERENT'}")
