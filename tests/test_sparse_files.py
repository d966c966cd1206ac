"""Sparse files: every bit of what is kept, and no more bytes than that."""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import deserialize, safe_open
from safetensors.numpy import save

import jprune
from jprune.export import arrays, load_sparse, save_sparse

DATA = Path(__file__).parent / "data"
FLOATS = [
    *(jnp.float16, jnp.bfloat16, jnp.float32, np.float64),
    *(jnp.float8_e4m3fn, jnp.float8_e5m2, jnp.float8_e4m3b11fnuz),
]


def bits_of(x: Any) -> bytes:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    return np.asarray(x).tobytes()


def tree_of(seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "a": {"kernel": jnp.asarray(rng.normal(size=(5, 7)), jnp.float32)},
        "b": {"kernel": jnp.asarray(rng.normal(size=(3, 3)), jnp.bfloat16)},
        "bias": jnp.asarray(rng.normal(size=4), jnp.float32),
    }


@pytest.mark.parametrize("dtype", FLOATS)
def test_what_is_kept_keeps_its_bits(dtype: Any, tmp_path: Path) -> None:
    """All patterns of bits: -0, subnormals, each NaN."""
    size = np.dtype(dtype).itemsize
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 256, 300 * size, np.uint8)
    raw[:size] = np.full(1, -0.0).astype(dtype).view(np.uint8)
    x = raw.view(dtype).reshape(20, 15)
    mask = rng.random(x.shape) < 0.3
    save_sparse(tmp_path / "w", {"w": x}, {"w": mask})
    found = load_sparse(tmp_path / "w")
    w = np.asarray(found.params["w"])
    assert w.dtype == x.dtype
    assert w[mask].tobytes() == x[mask].tobytes()
    assert w[~mask].tobytes() == bytes(size * int((~mask).sum()))
    np.testing.assert_array_equal(found.masks["w"], mask)


def test_leaves_without_masks_may_be_anything(tmp_path: Path) -> None:
    params = {
        "w": jnp.array([[1.0, 2.0]]),
        "scalar": jnp.float32(3.0),
        "number": 2,
        "none": None,
        "empty": jnp.zeros((0, 3), jnp.int8),
        "complex": jnp.array([1j, jnp.nan]),
        "wide": np.array([1 + 2j], np.complex128),
        "small": jnp.array([-8, 7], jnp.int4),
        "flag": jnp.array([True]),
        "key": jax.random.key(1),
        "long": np.array([2**60]),
    }
    save_sparse(tmp_path / "w", params, {"w": jnp.array([[True, False]])})
    found = load_sparse(tmp_path / "w").params
    for name, x in params.items():
        if x is None:
            assert name not in found
            continue
        x = x if hasattr(x, "dtype") else jnp.asarray(x)
        if name != "w":
            assert bits_of(found[name]) == bits_of(x), name
        assert (found[name].dtype, found[name].shape) == (x.dtype, x.shape)


def test_size_is_values_and_bits_and_header(tmp_path: Path) -> None:
    params = tree_of()
    masks = jprune.find_masks(
        params, 0.8, allocation=jprune.allocations.uniform()
    )
    file = tmp_path / "w"
    save_sparse(file, params, masks)
    data = file.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    values = 4 * (35 - 28) + 2 * (9 - 7) + 4 * 4
    assert len(data) == values + 5 + 2 + header  # bytes of 35 and of 9 bits
    names = {name for name, _ in deserialize(data)}
    assert names == {
        *("a/kernel.values", "a/kernel.bits"),
        *("b/kernel.values", "b/kernel.bits", "bias"),
    }


def test_any_reader_opens_it(tmp_path: Path) -> None:
    params = tree_of()
    masks = jprune.find_masks(params, 0.5, where="a/")
    save_sparse(tmp_path / "w", params, masks)
    with safe_open(tmp_path / "w", framework="np") as file:
        assert file.metadata()["format"] == "jprune.sparse"
        values = file.get_tensor("a/kernel.values")
        bits = file.get_tensor("a/kernel.bits")
    mask = np.unpackbits(bits, count=35, bitorder="little").reshape(5, 7)
    np.testing.assert_array_equal(mask, masks["a"]["kernel"])
    np.testing.assert_array_equal(
        values, np.asarray(params["a"]["kernel"])[mask.astype(bool)]
    )


@pytest.mark.slow
def test_masks_of_the_state_of_a_pruner(tmp_path: Path) -> None:
    params = tree_of()
    tx = optax.chain(optax.sgd(0.1), jprune.prune(0.5))
    state = tx.init(params)
    updates, state = tx.update(params, state, params)
    params = optax.apply_updates(params, updates)
    for i, masks in enumerate((state, jprune.get_masks(state), None)):
        save_sparse(tmp_path / str(i), params, masks)
        found = load_sparse(tmp_path / str(i))
        nested = jprune.export.unflat(found.params, params)
        jax.tree.map(np.testing.assert_array_equal, nested, params)
        wanted = jprune.get_masks(state)["a"]["kernel"]
        np.testing.assert_array_equal(found.masks["a/kernel"], wanted)
    assert len({x.stat().st_size for x in tmp_path.iterdir()}) == 1


def test_files_of_every_version_load() -> None:
    for file in DATA.glob("sparse-*"):
        params, masks = load_sparse(file)
        assert set(params) == {"w", "b", "h"}
        wanted = np.arange(24).reshape(4, 6) % 3 == 0
        np.testing.assert_array_equal(masks["w"], wanted)
        np.testing.assert_array_equal(params["w"] != 0, wanted)
        h = np.asarray(params["h"]).astype(np.float32)
        np.testing.assert_array_equal(h, [[1, 0, np.nan], [4, 0, 0]])
        assert np.signbit(h[0, 1])
    assert any(DATA.glob("sparse-*"))


# What is bad is refused -------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    params = {"w": jnp.arange(1.0, 13.0).reshape(3, 4), "b": jnp.ones(2)}
    masks = {"w": jnp.arange(12).reshape(3, 4) % 3 == 0}
    save_sparse(tmp_path / "w", params, masks)
    return tmp_path / "w"


def rewritten(file: Path, change: Any) -> None:
    """Another file, whose hash is right."""
    tensors, notes = arrays.from_bytes("load", "here", file.read_bytes())
    leaves = json.loads(notes["leaves"])
    change(tensors, leaves, notes)
    notes["leaves"] = json.dumps(leaves)
    digest = hashlib.sha256(notes["leaves"].encode())
    for name, x in sorted(tensors.items()):
        digest.update(f"{name!r} {x.dtype} {x.shape}\n".encode())
        digest.update(x.tobytes())
    notes["sha256"] = digest.hexdigest()
    file.write_bytes(save(tensors, notes))


BAD = {
    "bits of another shape": (
        lambda t, leaves, n: leaves["w"].update(shape=[5, 4]),
        r"'w\.bits': 2 bytes of bits; \(5, 4\) needs 3",
    ),
    "a shape beyond all memory": (
        lambda t, leaves, n: leaves["w"].update(shape=[10**9, 10**9]),
        "2 bytes of bits",
    ),
    "more values than bits": (
        lambda t, leaves, n: t.update({"w.values": np.ones(5, np.float32)}),
        r"'w\.values': 5 values, and 4 bits that are set",
    ),
    "bits behind the end": (
        lambda t, leaves, n: t["w.bits"].__setitem__(1, 0xF2),
        "bits are set behind the last weight",
    ),
    "no bits": (
        lambda t, leaves, n: t.pop("w.bits"),
        r"no sparse file: KeyError\('w\.bits'\)",
    ),
    "another version": (
        lambda t, leaves, n: n.update(version="2"),
        r"format and version are \('jprune\.sparse', '2'\)",
    ),
    "another format": (lambda t, leaves, n: n.pop("format"), "format and"),
    "a type that is none": (
        lambda t, leaves, n: leaves.update(b={"dtype": "os.system"}),
        "'b', must hold 'os.system', got float32",
    ),
    "no shape": (
        lambda t, leaves, n: leaves["w"].update(shape="abc"),
        "sparse file|invalid literal",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_inconsistent_is_refused(name: str, file: Path) -> None:
    change, message = BAD[name]
    rewritten(file, change)
    with pytest.raises(ValueError, match=message):
        load_sparse(file)


def test_swapped_tensors_and_new_nans_are_refused(file: Path) -> None:
    whole = file.read_bytes()
    nan = np.float32(np.nan).tobytes()
    file.write_bytes(whole.replace(np.float32(4).tobytes(), nan))
    with pytest.raises(ValueError, match="SHA-256"):
        load_sparse(file)
    length = (10**9).to_bytes(8, "little")
    file.write_bytes(length + whole[8:])
    with pytest.raises(ValueError, match="a header of 1,000,000,000 bytes"):
        load_sparse(file)
    with pytest.raises(ValueError, match="can't be read: No such file"):
        load_sparse(file.with_name("x"))


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_no_bit_may_flip_and_no_byte_be_missing(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = (DATA / "sparse-0.2.safetensors").read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        bad = whole[:place]
    else:
        flipped = whole[place] ^ (1 << data.draw(st.integers(0, 7)))
        bad = whole[:place] + bytes([flipped]) + whole[place + 1 :]
    damaged = tmp_path_factory.getbasetemp() / "damaged"
    damaged.write_bytes(bad)
    with pytest.raises(ValueError, match=r"`export\.load_sparse\(path\)`"):
        load_sparse(damaged)


@pytest.mark.parametrize(
    ("params", "masks", "message"),
    [
        ({"w": jnp.ones(3)}, {"v": jnp.ones(3, bool)}, "'v' fits no parameter"),
        ({"w": jnp.ones(3)}, {"w": jnp.ones(3)}, "must be bool"),
        (
            {"w": jnp.ones(3), "w.bits": jnp.ones(3)},
            {"w": jnp.ones(3, bool)},
            "called like the values or bits",
        ),
        (
            jax.ShapeDtypeStruct((2, 2), float),
            None,
            "must have values, got a shape",
        ),
    ],
)
def test_bad_calls_are_refused(
    params: Any, masks: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        save_sparse(tmp_path / "w", params, masks)
    assert not list(tmp_path.iterdir())
