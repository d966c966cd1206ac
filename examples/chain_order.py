"""In which places of an optax chain a pruner holds its zeros, by trying.

    python examples/chain_order.py

Every chain is trained while its pruner goes from 0 to 50 %. After each step the
script looks at the weights that the masks prune: all must be exactly 0.
"""

import jax
import jax.numpy as jnp
import optax
from common import flags
from tqdm import tqdm

import jprune

CHAINS = {
    "The order of links": """
optax.chain(adamw, pruner)
optax.chain(pruner, adamw)
optax.chain(optax.clip_by_global_norm(1.0), adamw, pruner)
optax.chain(adamw, pruner, optax.clip(0.01))
optax.chain(optax.adaptive_grad_clip(0.1), adamw, pruner)
optax.chain(adamw, pruner, optax.adaptive_grad_clip(0.1))
optax.named_chain(("optimizer", adamw), ("pruner", pruner))
optax.chain(adamw, optax.scale(0.5), pruner)
optax.chain(adamw, pruner, optax.scale(0.5))
optax.chain(adamw, pruner, optax.add_decayed_weights(-0.01))
optax.chain(adamw, optax.ema(0.9), pruner)
optax.chain(adamw, pruner, optax.ema(0.9))
optax.chain(adamw, optax.apply_every(2), pruner)
optax.chain(adamw, pruner, optax.apply_every(2))
optax.chain(adamw, optax.contrib.reduce_on_plateau(0.5, 1), pruner)
optax.chain(adamw, pruner, optax.contrib.reduce_on_plateau(0.5, 1))
optax.chain(adamw, pruner, optax.zero_nans())
optax.chain(adamw, pruner, optax.keep_params_nonnegative())
optax.chain(adamw, optax.keep_params_nonnegative(), pruner)
optax.chain(adamw, pruner, ball)
optax.chain(adamw, ball, pruner)
""",
    "Wrappers": """
optax.MultiSteps(optax.chain(adamw, pruner), 2)
optax.chain(optax.MultiSteps(adamw, 2), pruner)
optax.MultiSteps(optax.chain(adamw, pruner), 1, should_skip_update_fn=skip)
optax.apply_if_finite(optax.chain(adamw, pruner), 3)
optax.chain(optax.apply_if_finite(adamw, 3), pruner)
optax.masked(optax.chain(adamw, pruner), kernels)
optax.partition({0: optax.chain(adamw, pruner), 1: sgd}, labels)
optax.chain(optax.partition({0: adamw, 1: sgd}, labels), pruner)
optax.inject_hyperparams(tuned, hyperparam_dtype=jnp.float32)(sparsity=0.5)
optax.chain(optax.inject_hyperparams(optax.adamw)(0.1), pruner)
optax.selective_transform(optax.chain(adamw, pruner), freeze_mask=frozen)
optax.chain(optax.selective_transform(adamw, freeze_mask=frozen), pruner)
optax.contrib.galore(0.1, 2, base_optimizer=optax.chain(adam, pruner))
optax.chain(optax.contrib.galore(0.1, 2), pruner)
optax.conditionally_mask(optax.chain(adamw, pruner), odd)
optax.conditionally_transform(optax.chain(adamw, pruner), odd)
optax.chain(optax.conditionally_transform(adamw, odd), pruner)
optax.flatten(optax.chain(adamw, pruner))
optax.chain(optax.flatten(adamw), pruner)
optax.contrib.split_real_and_imaginary(optax.chain(adamw, pruner))
optax.lookahead(optax.chain(adamw, pruner), 2, 0.5)
optax.lookahead(optax.chain(adamw, pruner), 2, 0.5, reset_state=True)
optax.chain(optax.lookahead(adamw, 2, 0.5), of_fast)
optax.contrib.schedule_free(optax.chain(adamw, pruner), 0.1)
optax.chain(optax.contrib.schedule_free(adamw, 0.1), pruner)
optax.contrib.mechanize(optax.chain(adamw, pruner))
optax.chain(optax.contrib.mechanize(adamw), pruner)
optax.contrib.sam(optax.chain(sgd, pruner), sgd)
optax.chain(optax.contrib.sam(sgd, sgd), pruner)
""",
}
COPIES = {
    "optax.chain(adamw, pruner)": "moving average",
    "optax.chain(optax.contrib.schedule_free(adamw, 0.1), pruner)": (
        "`schedule_free_eval_params(state[0], params)`"
    ),
    "optax.chain(optax.lookahead(adamw, 2, 0.5), of_fast)": "`params.slow`",
}
jax.config.update("jax_disable_most_optimizations", True)  # compiles faster
args = flags(
    __doc__,
    steps=(7, "steps of each training"),
    only=("", "a part of the chains to try"),
)


ramp = optax.linear_schedule(0.0, 0.5, 4)
adamw = optax.adamw(0.1)


def tuned(sparsity):
    return optax.chain(adamw, jprune.prune(sparsity))


def odd(count, **_):
    return count % 2 == 1


NAMES = {
    "optax": optax,
    "jnp": jnp,
    "adamw": adamw,
    "adam": optax.adam(0.1),
    "sgd": optax.sgd(0.1),
    "pruner": jprune.prune(ramp),
    "of_fast": jprune.prune(ramp, where="^fast/[ab]"),
    "ball": jprune.project_frobenius_ball(3.0),
    "tuned": tuned,
    "labels": {"a": 0, "b": 0, "bias": 1},
    "kernels": {"a": True, "b": True, "bias": False},
    "frozen": {"a": False, "b": False, "bias": True},
    "skip": optax.skip_not_finite,
    "odd": odd,
}


def make_params():
    shapes = {"a": (6, 4), "bias": (4,), "b": (4, 8)}
    keys = jax.random.split(jax.random.key(0), len(shapes))
    pairs = zip(shapes.items(), keys, strict=True)
    return {name: jax.random.normal(key, shape) for (name, shape), key in pairs}


def loss(params):
    hidden = jnp.tanh(jnp.eye(6) @ params["a"] + params["bias"])
    return jnp.mean((hidden @ params["b"] - 1) ** 2)


def revived(params, masks):
    """How many pruned weights are not 0."""
    clean = jprune.apply_masks(params, masks)
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(clean), strict=True)
    return sum(int(jnp.sum(p != q)) for p, q in pairs)


def train(code):
    """The most weights that any step revived, the masks, and a copy."""
    tx = optax.with_extra_args_support(eval(code, NAMES))
    ahead = "lookahead" in code
    trained = (lambda params: params.fast) if ahead else lambda params: params
    params = make_params()
    if ahead:
        params = optax.LookaheadParams.init_synced(params)
    extra = {"value": 1.0} if "plateau" in code else {}
    copy, worst, state = params, 0, tx.init(params)
    # What has conditions is jitted; the rest starts faster without.
    plain = code in CHAINS["The order of links"]
    update = tx.update if plain else jax.jit(tx.update)
    for _ in range(args.steps):
        grads = jax.grad(loss)(trained(params))
        updates, state = update(grads, state, params, **extra)
        params = optax.apply_updates(params, updates)
        copy = optax.incremental_update(params, copy, 0.1)
        masks = jprune.get_masks(state)
        masks = masks.fast if code.endswith("of_fast)") else masks
        worst = max(worst, revived(trained(params), masks))
    if ahead:
        copy = params.slow
    elif "schedule_free(" in code and code.endswith("pruner)"):
        copy = optax.contrib.schedule_free_eval_params(state[0], params)
    return worst, masks, copy


def verdict(code):
    """One cell of the table, and what ``train`` returned."""
    try:
        worst, masks, copy = train(code)
    except ValueError as error:
        return f"refused: {str(error).split('. ')[0]}", None, None
    pruned = sum(int(jnp.sum(~mask)) for mask in jax.tree.leaves(masks))
    held = f"revives {worst} of {pruned}" if worst else f"holds all {pruned}"
    return held, masks, copy


chosen = {
    title: [code for code in text.strip().split("\n") if args.only in code]
    for title, text in CHAINS.items()
}
codes = [code for part in chosen.values() for code in part]
results = {code: verdict(code) for code in tqdm(codes, desc="chains")}
for title, part in chosen.items():
    print(f"| {title} | pruned weights |\n|---|---|")
    for code in part:
        print(f"| `{code}` | {results[code][0]} |")
    print()
print("| A copy of the weights | pruned, not 0 | masked |\n|---|---|---|")
for code in filter(results.__contains__, COPIES):
    _, masks, copy = results[code]
    clean = revived(jprune.apply_masks(copy, masks), masks)
    found = revived(copy, masks)
    print(f"| {COPIES[code]} of `{code}` | {found} | {clean} |")
