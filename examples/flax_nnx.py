"""A convolutional network of Flax NNX, pruned by its nnx.Optimizer.

    python examples/flax_nnx.py

The pruner is the last link of the optimizer's chain; model and training step
are as they were. Kernels are pruned, biases and batch norm are not.
"""

import jax
import jax.numpy as jnp
import optax
from common import accuracy, batches, cross_entropy, digits, flags
from flax import nnx

import jprune

args = flags(
    __doc__, steps=(600, "steps of training"), sparsity=(0.9, "at the end")
)
data = digits()


class Net(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.conv = nnx.Conv(1, 16, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.hidden = nnx.Linear(256, 64, rngs=rngs)
        self.out = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.norm(self.conv(x.reshape(-1, 8, 8, 1))))
        x = nnx.max_pool(x, (2, 2), (2, 2))
        x = nnx.relu(self.hidden(x.reshape(len(x), -1)))
        return self.out(x)


model = Net(nnx.Rngs(0))
ramp = optax.polynomial_schedule(
    0.0, args.sparsity, 3, args.steps // 2, args.steps // 4
)
tx = optax.chain(optax.adamw(3e-3), jprune.prune(ramp, every=10))
optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)


@nnx.jit
def train_step(model, optimizer, x, y):
    grads = nnx.grad(lambda model: cross_entropy(model(x), y))(model)
    optimizer.update(model, grads)


for x, y in batches(data, range(args.steps)):
    train_step(model, optimizer, x, y)

masks = jprune.get_masks(optimizer.opt_state)
params = nnx.state(model, nnx.Param)  # boxed or not, jprune looks inside
print(jprune.summarize(params, masks))
model.eval()
score = accuracy(model(jnp.asarray(data.x_test)), data.y_test)
print(f"accuracy on {len(data.y_test)} digits not seen: {score:.1%}")
