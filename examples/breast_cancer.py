"""Medicine: which measurements does a pruned network still read?

    python examples/breast_cancer.py --plot breast_cancer.png

A 30-16-1 network tells malignant tumours from benign ones by thirty
measurements of cell nuclei (Wisconsin, 1995). It is trained with more and more
sparsity, on ten divisions of the 569 patients. Recall is the fraction of the
malignant tumours that are found: the number that must not suffer.
"""

import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import flags, print_table
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import jprune
from jprune.models import MLP

SPARSITIES = (0.0, 0.5, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99)
args = flags(
    __doc__,
    steps=(500, "steps of each training"),
    splits=(10, "divisions into patients to train on and to test with"),
    plot=("", "a file for the plot"),
)
bunch = load_breast_cancer()
malignant = (bunch.target == 0).astype(np.float32)
splits = []
for seed in range(args.splits):
    x, x_test, y, y_test = train_test_split(
        bunch.data,
        malignant,
        test_size=0.3,
        stratify=malignant,
        random_state=seed,
    )
    mean, std = x.mean(0), x.std(0)
    splits.append(((x - mean) / std, y, (x_test - mean) / std, y_test))
x, y, x_test, y_test = (np.stack(part) for part in zip(*splits, strict=True))
model = MLP((16, 1))
ramp = optax.polynomial_schedule(0.0, 1.0, 3, args.steps // 2, args.steps // 4)


@jax.jit  # compiled once: the sparsity is an argument like any other
def train(sparsity, key):
    tx = optax.chain(
        optax.adamw(3e-3, weight_decay=1e-2),
        jprune.prune(
            lambda count: sparsity * ramp(count),
            allocation=jprune.allocations.global_ranking(),
            every=10,
        ),
    )

    def train_split(key, x, y, x_test, y_test):
        def loss(params):
            logits = model.apply(params, x)[:, 0]
            return optax.sigmoid_binary_cross_entropy(logits, y).mean()

        def step(carry, _):
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        params = model.init(key, x)
        carry = params, tx.init(params)
        (params, state), _ = jax.lax.scan(step, carry, length=args.steps)
        found = model.apply(params, x_test)[:, 0] > 0
        correct = jnp.mean(found == y_test)
        recall = jnp.sum(found * y_test) / jnp.sum(y_test)
        return params, jprune.get_masks(state), correct, recall

    return jax.vmap(train_split)(key, x, y, x_test, y_test)


keys = jax.random.split(jax.random.key(0), args.splits)
runs = [train(s, keys) for s in tqdm(SPARSITIES, desc="sparsities")]
rows, reads = [], []
for sparsity, (params, masks, correct, recall) in zip(
    SPARSITIES, runs, strict=True
):
    kernels = [p[0] for p in jax.tree.leaves(params) if p.ndim == 3]
    reads.append(np.any(masks["params"]["Dense_0"]["kernel"], axis=2))
    rows.append(
        (
            f"{sparsity:.0%}",
            sum(int(np.count_nonzero(kernel)) for kernel in kernels),
            f"{reads[-1].sum(axis=1).mean():.1f} of 30",
            f"{correct.mean():.1%}",
            f"{recall.mean():.1%}",
            f"{recall.min():.1%}",
        )
    )
print_table(
    ("sparsity", "weights", "reads", "accuracy", "recall", "worst recall"),
    rows,
)
shown = SPARSITIES.index(0.98)
names = bunch.feature_names[reads[shown][0]]
print(f"\nAt 98 % the network of the first division reads {len(names)}:")
print(textwrap.fill(", ".join(names), 72))

if args.plot:
    from matplotlib.figure import Figure

    figure = Figure((9, 5), layout="constrained")
    left, right = figure.subfigures(1, 2)
    axes = left.subplots()
    for i, label in ((2, "accuracy"), (3, "recall")):
        scores = np.stack([run[i] for run in runs], axis=1)
        jprune.plot.accuracy(SPARSITIES, scores, label=label, ax=axes)
    axes.set_ylabel("%, mean and range of the divisions")
    axes.legend()
    params, masks = jax.tree.map(
        lambda leaf: leaf[0], (runs[shown][0], runs[shown][1])
    )
    name = "first layer, sparsity"
    jprune.plot.masks(
        {name: masks["params"]["Dense_0"]["kernel"]},
        {name: params["params"]["Dense_0"]["kernel"]},
        figure=right,
    )
    right.axes[0].set_yticks(range(30), bunch.feature_names, fontsize=7)
    figure.savefig(args.plot, dpi=80)
