"""Two hosts train together and save: the masks are those of one process.

    python examples/two_hosts.py

Two processes of this machine stand for two hosts, with four CPU devices each.
Each reads its own half of a batch and holds a part of the weights. Both write
one Orbax checkpoint, which one process reads; the first alone writes a file.
"""

import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from common import accuracy, batches, cross_entropy, digits, flags, print_table
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jprune
from jprune.models import MLP

args = flags(
    __doc__,
    steps=(300, "steps of each training"),
    host=("", "which of the hosts this process is (internal)"),
    port=("", "where the hosts meet (internal)"),
    folder=("", "where they save (internal)"),
)
HOSTS = 2
if args.host:
    # Before anything is computed, as a schedule is that `prune` checks. Twice
    # as many devices as are used: the CPU client has as many threads, and its
    # collectives need some to spare.
    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{args.port}", HOSTS, int(args.host))

data = digits()
model = MLP((64, 64, 8 * 2))  # ten classes; the rest makes 16 divisible
ramp = optax.polynomial_schedule(0.0, 0.9, 3, args.steps // 2, args.steps // 4)
tx = optax.chain(optax.adamw(3e-3), jprune.prune(ramp, every=10))


@jax.jit
def step(params, state, x, y):
    def loss(params):
        return cross_entropy(model.apply(params, x), y)

    updates, state = tx.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state


def train(params, name, place=lambda batch: batch):
    state = tx.init(params)
    for batch in batches(data, range(args.steps), name):
        params, state = step(params, state, *place(batch))
    return params, state


def one_of_the_hosts():
    used = [x for x in jax.devices() if x in first_four(x.process_index)]
    mesh = jax.make_mesh(
        (HOSTS, 4), ("data", "model"), (AxisType.Auto,) * 2, devices=used
    )
    by_rows = NamedSharding(mesh, PartitionSpec("data"))
    by_outputs = {
        1: NamedSharding(mesh, PartitionSpec("model")),  # biases
        2: NamedSharding(mesh, PartitionSpec("data", "model")),  # kernels
    }

    def own_half(batch):
        """What this host reads, as a part of an array of both."""
        mine = (np.split(x, HOSTS)[jax.process_index()] for x in batch)
        return [
            jax.make_array_from_process_local_data(by_rows, x) for x in mine
        ]

    params = model.init(jax.random.key(0), data.x)  # the same on both
    params = jax.tree.map(
        lambda p: jax.device_put(p, by_outputs[p.ndim]), jax.device_get(params)
    )
    with jax.set_mesh(mesh):  # so that step counts are on both hosts too
        params, state = train(params, f"on host {args.host}", own_half)
    folder = Path(args.folder)
    with ocp.StandardCheckpointer() as saver:  # each writes what it holds
        saver.save(folder / "checkpoint", (params, state))
    whole = process_allgather((params, jprune.get_masks(state)), tiled=True)
    if jax.process_index() == 0:
        jprune.export.save_sparse(folder / "weights.safetensors", *whole)
    jax.distributed.shutdown()


def first_four(host):
    return [x for x in jax.devices() if x.process_index == host][:4]


def run_hosts(folder):
    """Starts both, and ends them whatever happens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = []
    try:
        for host in range(HOSTS):
            command = [
                *(sys.executable, __file__, f"--steps={args.steps}"),
                *(f"--host={host}", f"--port={port}", f"--folder={folder}"),
            ]
            quiet = subprocess.DEVNULL
            running.append(subprocess.Popen(command, stdout=quiet))
        for process in running:
            if process.wait(timeout=600):
                raise SystemExit("a host failed")
    finally:
        for process in running:
            process.kill()
            process.wait()


def differing(a, b):
    """How many entries of two lists of masks differ."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return sum(int(np.sum(np.asarray(x) != np.asarray(y))) for x, y in pairs)


if args.host:
    one_of_the_hosts()
    sys.exit()

fresh = model.init(jax.random.key(0), data.x)
one, state = train(fresh, "in one process")
with tempfile.TemporaryDirectory() as folder:
    run_hosts(folder)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here),
        (one, state),
    )
    with ocp.StandardCheckpointer() as reader:
        two, two_state = reader.restore(f"{folder}/checkpoint", like)
    file = jprune.export.load_sparse(f"{folder}/weights.safetensors")

one_masks, two_masks = jprune.get_masks(state), jprune.get_masks(two_state)
rows = []
for name, params, masks in (
    ("one process", one, one_masks),
    ("two hosts", two, two_masks),
):
    score = accuracy(model.apply(params, data.x_test), data.y_test)
    sparsity = jprune.measure_sparsity(masks)
    rows.append((name, f"{sparsity:.2%}", f"{score:.1%}"))
print_table(("trained by", "sparsity", "test accuracy"), rows)
total = sum(mask.size for mask in jax.tree.leaves(two_masks))
print(f"\nOf {total:,} entries of the two hosts' masks there differ")
print(f"  {differing(two_masks, one_masks)} from those of one process")
print(
    f"  {differing(two_masks, file.masks)} from those in the file of one host"
)
