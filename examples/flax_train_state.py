"""Linen's TrainState, pruned; its masks read out and logged on the way.

    python examples/flax_train_state.py --plot accuracy.png

The state holds the masks, so whatever saves it, shards it or logs it sees them.
The accuracy between the first and the last pruning is that of a network that
still learns: the plot shows how much sparsity the digits allow.
"""

import jax
import optax
from common import accuracy, batches, cross_entropy, digits, flags, print_table
from flax.training.train_state import TrainState

import jprune
from jprune.models import MLP

args = flags(
    __doc__,
    steps=(1000, "steps of training"),
    sparsity=(0.95, "at the end"),
    plot=("", "a file for the plot of accuracy against sparsity"),
)
data = digits()
model = MLP((64, 64, 10))
ramp = optax.polynomial_schedule(
    0.0, args.sparsity, 3, args.steps * 3 // 5, args.steps // 5
)
tx = optax.chain(optax.adamw(3e-3), jprune.prune(ramp, every=10))
state = TrainState.create(
    apply_fn=model.apply, params=model.init(jax.random.key(0), data.x), tx=tx
)


@jax.jit
def train_step(state, x, y):
    def loss(params):
        return cross_entropy(state.apply_fn(params, x), y)

    value, grads = jax.value_and_grad(loss)(state.params)
    state = state.apply_gradients(grads=grads)
    # jit-safe: no transfer to the host but the two numbers of the log
    sparsity = jprune.measure_sparsity(jprune.get_masks(state))
    return state, {"loss": value, "sparsity": sparsity}


log = []
for x, y in batches(data, range(args.steps)):
    state, metrics = train_step(state, x, y)
    if state.step % max(args.steps // 10, 1) == 0:
        score = accuracy(model.apply(state.params, data.x_test), data.y_test)
        log.append(
            (
                int(state.step),
                float(metrics["sparsity"]),
                metrics["loss"],
                score,
            )
        )

print_table(
    ("step", "sparsity", "loss", "test accuracy"),
    [(n, f"{s:.1%}", f"{loss:.3f}", f"{a:.1%}") for n, s, loss, a in log],
)
print()
print(jprune.summarize(state.params, jprune.get_masks(state)))

if args.plot:
    _, sparsities, _, scores = zip(*log, strict=True)
    axes = jprune.plot.accuracy(sparsities, scores)
    axes.set_title("Digits: accuracy while the network is pruned")
    axes.figure.savefig(args.plot, dpi=80)
