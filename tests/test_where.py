"""Which leaves are meant: by default, by an expression, by a tree of bools."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import jprune
from jprune._core.trees import is_hole, leaves_with_path, path_name

W = jnp.arange(1.0, 17.0).reshape(4, 4)


def nested(paths: list[str], leaf: Any = W) -> Any:
    tree: dict[str, Any] = {}
    for path in paths:
        *parents, own = path.split("/")
        here = tree
        for parent in parents:
            here = here.setdefault(parent, {})
        here[own] = leaf
    return tree


def chosen(params: Any, where: Any = None) -> set[str]:
    masks = jprune.find_masks(params, 0.5, where=where)
    state = jprune.prune(0.5, where=where).init(params)
    jax.tree.map(lambda a, b: None, state.masks, masks)  # the same leaves
    return {
        path_name(path) for path, x in leaves_with_path(masks) if not is_hole(x)
    }


KERNELS = {
    "Dense_0/kernel",
    "embedded_layers/Dense_0/kernel",  # a parent's parent is no matter
    "normal/kernel",
    "posterior/kernel",
    "compose/w",
    "b",  # of nothing
    "posts/w",
    "LinearNet/kernel",
    "biased/kernel",
}
OTHERS = {
    "attention/bias",  # [heads, width]
    "haiku/b",
    "Dense_0/scale",
    "Dense_0/mean",
    "Dense_0/var",
    "LayerNorm_0/kernel",
    "RMSNorm/weight",
    "layernorm2/weight",
    "batch_norm/weight",
    "GroupNorm_1/gamma",
    "Embed_0/kernel",
    "pos_embed",
    "posEmb1",
    "tok_emb/w",
    "embeddings/w",
    "encoder/position/table",
    "relativePositional",
    "blocks/norm1/w",
}


def test_the_default() -> None:
    params = nested([*sorted(KERNELS), *sorted(OTHERS), "haiku/w"])
    params["vector"] = jnp.ones(4)
    params["integers"] = jnp.ones((4, 4), int)
    assert chosen(params) == KERNELS | {"haiku/w"}
    read = jprune.read_masks(params)
    assert {
        path_name(path) for path, x in leaves_with_path(read) if not is_hole(x)
    } == KERNELS | {"haiku/w"}
    zeros = jax.tree.map(jnp.zeros_like, params)
    rows = jprune.summarize(zeros).leaves
    assert {row.path for row in rows if not row.kept} == KERNELS | {"haiku/w"}


def test_siblings_may_be_elsewhere() -> None:
    """A part of the tree, as `optax.partition` hands it on."""
    params = {"layer": {"w": optax.MaskedNode(), "b": W}, "other": W}
    assert chosen(params) == {"other"}


LAYER = {
    "mlp": {"kernel": W, "bias": jnp.ones(4)},
    "attention": {
        "kernel": jnp.ones((4, 2, 2)),
        "bias": jnp.ones((2, 2)),
        "steps": jnp.ones((2, 2), int),
    },
    "pair": {"w": W, "b": jnp.ones((2, 2))},
    "embed": {"embedding": W},
}


@pytest.mark.parametrize(
    ("where", "names"),
    [
        ("attention", {"attention/kernel"}),
        ("mlp|pair", {"mlp/kernel", "pair/w"}),
        ("embed", {"embed/embedding"}),  # said is said
        ("attention/bias", {"attention/bias"}),
        (".*bias", {"attention/bias", "mlp/bias"}),
        ("^mlp/", {"mlp/kernel"}),
        (
            ".*",
            {
                *("mlp/kernel", "mlp/bias", "attention/kernel", "pair/w"),
                *("attention/bias", "pair/b", "embed/embedding"),
            },
        ),
    ],
)
def test_an_expression(where: str, names: set[str]) -> None:
    assert chosen(LAYER, where) == names


def test_an_expression_that_chooses_nothing_says_why() -> None:
    hint = r"\(its whole path would choose it\)"
    message = (
        "selects no parameter, got 'bias'; the leaves are: 'attention/bias' is "
        f"called 'bias' {hint}, attention/kernel, .*"
        f"'mlp/bias' has fewer than two axes {hint}"
    )
    with pytest.raises(ValueError, match=message):
        jprune.find_masks(LAYER, 0.5, where="bias")
    with pytest.raises(ValueError, match="'attention/steps' must be a real"):
        jprune.find_masks(LAYER, 0.5, where="steps")


def test_projections_are_of_biases_too() -> None:
    tx = jprune.project_frobenius_ball(1.0, per="leaf", where="mlp")
    zeros = jax.tree.map(jnp.zeros_like, LAYER)
    moved, _ = tx.update(zeros, tx.init(LAYER), LAYER)
    landed = optax.apply_updates(LAYER, moved)["mlp"]
    for name in ("bias", "kernel"):
        assert jnp.linalg.norm(landed[name]) == pytest.approx(1)
    assert not moved["pair"]["w"].any()


def test_a_module_of_bools_is_a_tree() -> None:
    eqx = pytest.importorskip("equinox")
    model = eqx.nn.MLP(4, 2, 8, 1, key=jax.random.key(0))
    params = eqx.filter(model, eqx.is_inexact_array)
    where = jax.tree.map(lambda x: x.ndim == 2, params)
    assert callable(where)
    assert chosen(params, where) == {"layers/0/weight", "layers/1/weight"}
