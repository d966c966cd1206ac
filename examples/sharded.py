"""The same training on one device and on eight: the same masks.

    python examples/sharded.py

Eight CPU devices stand for a pod: a mesh of 2 x 4, the batch divided in two,
the layers by their outputs in four. Nothing in the training is written for
it. Masks have the sharding of the weights, each device counts what it holds,
and no weight leaves its device to be ranked.
"""

import jax
import numpy as np
import optax
from common import accuracy, batches, cross_entropy, digits, flags, print_table
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jprune
from jprune.models import MLP

# Before the first array; twice as many as are used, for the CPU client has as
# many threads as devices: with none to spare its collectives may wait forever.
jax.config.update("jax_num_cpu_devices", 16)
args = flags(
    __doc__, steps=(300, "steps of each training"), sparsity=(0.9, "at the end")
)
data = digits()
model = MLP((64, 64, 8 * 2))  # ten classes; the rest makes 16 divisible
mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
by_rows = NamedSharding(mesh, PartitionSpec("data"))
by_outputs = {
    1: NamedSharding(mesh, PartitionSpec("model")),  # biases
    2: NamedSharding(mesh, PartitionSpec(None, "model")),  # kernels
}
ramp = optax.polynomial_schedule(
    0.0, args.sparsity, 3, args.steps // 2, args.steps // 4
)
tx = optax.chain(
    optax.adamw(3e-3),
    jprune.prune(
        ramp, allocation=jprune.allocations.global_ranking(), every=10
    ),
)


@jax.jit
def step(params, state, x, y):
    def loss(params):
        return cross_entropy(model.apply(params, x), y)

    updates, state = tx.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state


def train(params, name, place=lambda batch: batch):
    state = tx.init(params)  # masks and moments lie where the weights do
    for batch in batches(data, range(args.steps), name):
        params, state = step(params, state, *place(batch))
    return params, jprune.get_masks(state)


fresh = model.init(jax.random.key(0), data.x)
divided = jax.tree.map(lambda p: jax.device_put(p, by_outputs[p.ndim]), fresh)
one, one_masks = train(fresh, "on one device")
with jax.set_mesh(mesh):  # so that step counts are made on the mesh as well
    eight, eight_masks = train(
        divided, "on eight devices", lambda b: jax.device_put(b, by_rows)
    )

rows = []
for name, params, masks in (
    ("one device", one, one_masks),
    ("eight devices", eight, eight_masks),
):
    mask = masks["params"]["Dense_0"]["kernel"]
    shard = mask.addressable_shards[0].data.shape
    score = accuracy(model.apply(params, data.x_test), data.y_test)
    sparsity = jprune.measure_sparsity(masks)
    rows.append(
        (name, f"{mask.shape}", f"{shard}", f"{sparsity:.2%}", f"{score:.1%}")
    )
print_table(
    ("", "mask of a layer", "on a device", "sparsity", "test accuracy"), rows
)


def differing(a, b):
    """How many entries of two mask trees differ."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return sum(int(np.sum(np.asarray(x) != np.asarray(y))) for x, y in pairs)


total = sum(mask.size for mask in jax.tree.leaves(one_masks))
find = jax.jit(lambda params: jprune.find_masks(params, 0.5))
same = find(eight), find(jax.device_get(eight))
off = max(
    float(abs(np.asarray(x) - np.asarray(y)).max())
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True)
)
print(f"\nOf {total:,} entries of the masks there differ")
print(f"  {differing(*same)} when one device and eight rank the same weights")
print(f"  {differing(one_masks, eight_masks)} after the two trainings")
print(f"whose weights differ by {off:.0e}: sums over shards round differently.")
