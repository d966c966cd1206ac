"""Models in files: what is written is what is read, and nothing else is."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import export as jax_export

import jprune
from jprune import export
from jprune.export import files

DATA = Path(__file__).parent / "data"
Params = dict[str, dict[str, jax.Array]]


def fn(params: Any, x: jax.Array) -> jax.Array:
    h = jnp.tanh(x @ params["a"]["w"] + params["a"]["b"])
    return h @ params["b"]["w"]


def params_of(width: int = 6) -> Params:
    keys = jax.random.split(jax.random.key(0), 3)
    return {
        "a": {
            "w": jax.random.normal(keys[0], (4, width)),
            "b": jax.random.normal(keys[1], (width,)),
        },
        "b": {"w": jax.random.normal(keys[2], (width, 3))},
    }


X = jax.random.normal(jax.random.key(1), (2, 4))
MASKS = {"b": {"w": jnp.arange(6)[:, None] > 2}}


def any_batch() -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jax_export.symbolic_shape("b, 4"), X.dtype)


@pytest.fixture(scope="module")
def small() -> Any:
    return jprune.compact(fn, params_of(), X, masks=MASKS)


class Written(NamedTuple):
    folder: Path
    archive: Path


@pytest.fixture(scope="module")
def written(small: Any, tmp_path_factory: pytest.TempPathFactory) -> Written:
    place = tmp_path_factory.mktemp("bundles")
    small.save(place / "model", any_batch(), vjp=True)
    small.save(place / "model.zip", X)
    return Written(place / "model", place / "model.zip")


# What is written is read ------------------------------------------------------


@pytest.mark.parametrize("kind", Written._fields)
def test_a_compact_model_comes_back(
    kind: str, small: Any, written: Written
) -> None:
    bundle = export.load(getattr(written, kind))
    assert set(bundle.params) == {"a/w", "a/b", "b/w"}
    np.testing.assert_allclose(
        bundle.fn(bundle.params, X), small.fn(small.params, X), rtol=1e-5
    )
    assert bundle.plan == small.plan
    assert bundle.certificate is not None
    assert bundle.certificate.error < 1e-5
    assert bundle.certificate.cases == 4
    assert bundle.verify().error < 1e-5
    assert bundle.versions["jax"] == jax.__version__
    nested = export.unflat(bundle.params, small.params)
    jax.tree.map(np.testing.assert_array_equal, nested, small.params)


def test_a_symbol_of_the_batch_stays_open(written: Written) -> None:
    bundle = export.load(written.folder)
    for n in (1, 5):
        assert bundle.fn(bundle.params, jnp.ones((n, 4))).shape == (n, 3)
    fixed = export.load(written.archive)
    with pytest.raises(ValueError, match=r"args\[0\] must be float32 of shape"):
        fixed.fn(fixed.params, jnp.ones((5, 4)))


def test_training_goes_on_only_with_the_derivative(written: Written) -> None:
    bundle = export.load(written.folder)
    assert bundle.vjp

    def loss(params: Any) -> Any:
        return jnp.sum(bundle.fn(params, X) ** 2)

    tx = optax.sgd(1e-3)
    params, state = bundle.params, tx.init(bundle.params)
    updates, state = tx.update(jax.grad(loss)(params), state)
    assert loss(optax.apply_updates(params, updates)) < loss(params)
    other = export.load(written.archive)
    assert not other.vjp
    with pytest.raises(ValueError, match="No VJP"):
        jax.grad(lambda p: other.fn(p, X).sum())(other.params)


def test_elsewhere_without_source_or_flax(written: Written) -> None:
    """Another process loads, runs, verifies and takes a step of training."""
    code = f"""
        import sys
        sys.modules["flax"] = None
        import jax, jax.numpy as jnp, optax
        import jprune
        bundle = jprune.export.load({str(written.folder)!r})
        assert bundle.verify().error < 1e-5
        x = jnp.ones((3, 4))
        loss = lambda p: jnp.sum(bundle.fn(p, x) ** 2)
        grads = jax.grad(loss)(bundle.params)
        step = jax.tree.map(lambda p, g: p - 1e-3 * g, bundle.params, grads)
        assert loss(step) < loss(bundle.params)
        print(float(loss(bundle.params)))
        """
    printed = subprocess.check_output(
        [sys.executable, "-c", textwrap.dedent(code)], text=True
    )
    bundle = export.load(written.folder)
    wanted = jnp.sum(bundle.fn(bundle.params, jnp.ones((3, 4))) ** 2)
    np.testing.assert_allclose(float(printed), wanted, rtol=1e-5)


def test_jax_and_safetensors_alone_will_do(
    small: Any, written: Written
) -> None:
    """What the page says of readers that have no jprune."""
    load_file = pytest.importorskip("safetensors.numpy").load_file
    (code,) = written.folder.glob("program.*.stablehlo")
    (tensors,) = written.folder.glob("params.*.safetensors")
    program = jax_export.deserialize(bytearray(code.read_bytes()))
    found = program.call(load_file(tensors), {}, X)
    np.testing.assert_allclose(found, small.fn(small.params, X), rtol=1e-5)


def test_several_platforms(tmp_path: Path) -> None:
    where = ("cpu", "cuda", "tpu")
    export.save(tmp_path / "m", fn, params_of(), X, platforms=where)
    bundle = export.load(tmp_path / "m")
    assert bundle.platforms == where
    assert bundle.verify().error < 1e-5
    with pytest.raises(ValueError, match="must hold 'cpu'"):
        export.save(tmp_path / "m", fn, params_of(), X, platforms=["tpu"])


def test_trees_are_dicts_lists_and_tuples(tmp_path: Path) -> None:
    class Pair(NamedTuple):
        z: Any
        a: Any

    def model(params: Any, pair: Pair, more: Any) -> Any:
        return Pair({"n": params[0] * pair.z - pair.a}, [more[7], None])

    args = (Pair(jnp.ones(2), 2 * jnp.ones(2)), {7: jnp.arange(3)})
    export.save(tmp_path / "m", model, [jnp.array(3.0)], *args)
    bundle = export.load(tmp_path / "m")
    found = bundle.fn(bundle.params, *args)
    assert type(found) is tuple
    np.testing.assert_array_equal(found[0]["n"], jnp.ones(2))
    np.testing.assert_array_equal(found[1][0], jnp.arange(3))
    assert bundle.verify().error == 0
    assert list(bundle.params) == ["0"]


def test_dtypes_and_keys_of_parameters(tmp_path: Path) -> None:
    params = {
        "half": jnp.array([1.0, -0.0, jnp.nan], jnp.bfloat16),
        "byte": jnp.array([1.0, -2.0], jnp.float8_e4m3fn),
        "four": jnp.array([1, -8], jnp.int4),
        "complex": jnp.array([1 + 2j]),
        "flag": jnp.array([True, False]),
        "key": jax.random.key(3),
        "number": 2.5,
    }

    def model(p: Any, x: jax.Array) -> Any:
        return x * p["number"] + jax.random.normal(p["key"]) + p["half"][0]

    export.save(tmp_path / "m", model, params, X)
    bundle = export.load(tmp_path / "m")
    for name, x in params.items():
        found, x = bundle.params[name], jnp.asarray(x)
        assert found.dtype == x.dtype
        if name == "key":
            found, x = jax.random.key_data(found), jax.random.key_data(x)
        assert np.asarray(found).tobytes() == np.asarray(x).tobytes(), name
    assert bundle.verify().error == 0


def test_large_constants_are_arrays(tmp_path: Path) -> None:
    table = np.random.default_rng(0).normal(size=(200, 100)).astype("f4")

    def model(w: jax.Array, i: jax.Array) -> jax.Array:
        return jax.jit(lambda i: jnp.asarray(table)[i])(i) @ w

    export.save(tmp_path / "m", model, jnp.ones(100), jnp.arange(5))
    (code,) = (tmp_path / "m").glob("program.*")
    (held,) = (tmp_path / "m").glob("constants.*")
    assert code.stat().st_size < 10_000
    assert table.nbytes < held.stat().st_size < table.nbytes + 200
    bundle = export.load(tmp_path / "m")
    np.testing.assert_allclose(
        bundle.fn(bundle.params, jnp.arange(5)),
        table[:5].sum(1),
        rtol=1e-4,
    )


def test_a_module_is_saved_by_its_paths(tmp_path: Path) -> None:
    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(model)
    export.save(
        tmp_path / "m", lambda s, x: nnx.merge(graphdef, s)(x), state, X
    )
    bundle = export.load(tmp_path / "m")
    assert set(bundle.params) == {"kernel", "bias"}
    np.testing.assert_allclose(bundle.fn(bundle.params, X), model(X), rtol=1e-6)
    again = nnx.merge(graphdef, export.unflat(bundle.params, state))
    np.testing.assert_array_equal(again(X), model(X))


@pytest.mark.parametrize("vjp", [False, True])
def test_no_file_says_where_its_author_works(vjp: bool, tmp_path: Path) -> None:
    def fn(params: Any, x: Any) -> Any:
        return jnp.tanh(x @ params["w"])

    export.save(tmp_path / "m.zip", fn, {"w": jnp.eye(4)}, X, vjp=vjp)
    data = (tmp_path / "m.zip").read_bytes()
    assert b".py" not in data
    assert str(Path(__file__).parent).encode() not in data


def test_files_of_every_version_load() -> None:
    for place in sorted(DATA.glob("bundle-*")):
        bundle = export.load(place)
        assert bundle.verify().error < 1e-4
        assert bundle.plan is not None
        assert bundle.fn(bundle.params, jnp.ones((3, 4))).shape == (3, 3)
        grads = jax.grad(lambda p, b=bundle: b.fn(p, X).sum())(bundle.params)
        assert set(grads) == set(bundle.params)
    assert any(DATA.glob("bundle-*"))


# What is bad is refused -------------------------------------------------------


def copied(written: Written, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written.folder, tmp_path / "copy"))


def part(folder: Path, stem: str) -> Path:
    (found,) = folder.glob(f"{stem}.*")
    return found


def rewrite(folder: Path, change: Any = None, **data: bytes) -> None:
    """Other parts, with a manifest whose hashes are right."""
    about = json.loads((folder / files.MANIFEST).read_bytes())
    del about["sha256"]
    for stem, content in data.items():
        listed = about["files"][stem]
        (folder / listed["name"]).write_bytes(content)
        listed["bytes"] = len(content)
        listed["sha256"] = hashlib.sha256(content).hexdigest()
    if change:
        change(about)
    (folder / files.MANIFEST).write_bytes(files.signed(about))


def refused(place: Path, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        export.load(place)
    assert "`export.load(path)`" in str(error.value)
    assert str(place) in str(error.value)


@pytest.mark.parametrize("stem", ["params", "program", "plan", "outputs"])
def test_a_part_that_is_cut_off(
    stem: str, written: Written, tmp_path: Path
) -> None:
    folder = copied(written, tmp_path)
    file = part(folder, stem)
    file.write_bytes(file.read_bytes()[:-3])
    refused(folder, "cut off")
    file.unlink()
    refused(folder, "No such file")


def test_a_value_that_became_nan(written: Written, tmp_path: Path) -> None:
    folder = copied(written, tmp_path)
    file = part(folder, "params")
    data = bytearray(file.read_bytes())
    data[-4:] = np.float32(np.nan).tobytes()
    file.write_bytes(data)
    refused(folder, "SHA-256")


def test_parts_of_other_models(written: Written, tmp_path: Path) -> None:
    folder = copied(written, tmp_path)
    plan = jprune.compact(fn, params_of(), X).plan.to_json().encode()
    rewrite(folder, plan=plan)
    refused(folder, "the plan is that of other parameters: 'a/w'|'a/b'|'b/w'")


def test_tensors_that_were_swapped(written: Written, tmp_path: Path) -> None:
    folder = copied(written, tmp_path)
    data = part(folder, "params").read_bytes()
    swapped = data.replace(b'"a/w"', b'"X/X"').replace(b'"b/w"', b'"a/w"')
    rewrite(folder, params=swapped.replace(b'"X/X"', b'"b/w"'))
    refused(folder, "'(a|b)/w'")


def test_a_later_version(written: Written, tmp_path: Path) -> None:
    folder = copied(written, tmp_path)
    rewrite(folder, lambda about: about.update(version=2))
    refused(folder, "version 2 of the format; this jprune reads 1 to 1")
    rewrite(folder, lambda about: about.update(version=1, format="other"))
    refused(folder, "a format of 'other'")


def test_paths_that_climb_out(written: Written, tmp_path: Path) -> None:
    folder = copied(written, tmp_path)
    (tmp_path / "plan.json").write_bytes(b"[]")

    def climb(about: Any) -> None:
        about["files"]["plan"]["name"] = "../plan.json"

    rewrite(folder, climb)
    refused(folder, r"a part is called 'plan\.<16 digits>\.<ending>'")


def test_a_header_of_a_gigabyte(written: Written, tmp_path: Path) -> None:
    folder = copied(written, tmp_path)
    header = (10**9).to_bytes(8, "little")
    rewrite(folder, params=header + b"{}" + bytes(100))
    refused(folder, "a header of 1,000,000,000 bytes")


def test_a_program_that_is_none(written: Written, tmp_path: Path) -> None:
    folder = copied(written, tmp_path)
    rewrite(folder, program=b"no program")
    refused(folder, "can't read the program, which JAX .* wrote")


def test_an_archive_that_unpacks_to_more(
    written: Written, tmp_path: Path
) -> None:
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(files.MANIFEST, b" " * 10**7)
    refused(bomb, "stored and not compressed")
    bomb.write_bytes(written.archive.read_bytes()[:-30])
    refused(bomb, "no archive")


def test_a_case_that_asks_for_too_much(
    written: Written, tmp_path: Path
) -> None:
    folder = copied(written, tmp_path)

    def change(about: Any) -> None:
        about["case"][0]["shape"] = [10**12, 4]

    rewrite(folder, change)
    refused(folder, "input 0 is float32 of shape")


def test_verify_tells_another_model(written: Written, tmp_path: Path) -> None:
    folder = copied(written, tmp_path)
    data = bytearray(part(folder, "params").read_bytes())
    data[-12:] = np.full(3, 9, np.float32).tobytes()
    rewrite(folder, params=bytes(data))
    with pytest.raises(ValueError, match="output 0 differs by"):
        export.load(folder).verify()


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_no_bit_may_flip_and_no_byte_be_missing(
    data: st.DataObject, written: Written
) -> None:
    folder = written.folder
    names = sorted(x.name for x in folder.iterdir())
    file = folder / data.draw(st.sampled_from(names))
    whole = file.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        bad = whole[:place]
    else:
        flipped = whole[place] ^ (1 << data.draw(st.integers(0, 7)))
        bad = whole[:place] + bytes([flipped]) + whole[place + 1 :]
    try:
        file.write_bytes(bad)
        with pytest.raises(ValueError, match=r"`export\.load\(path\)`"):
            export.load(folder)
    finally:
        file.write_bytes(whole)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_archives_are_read_or_refused(
    data: st.DataObject, written: Written
) -> None:
    """A bit of an archive that nobody reads may flip, a date say."""
    whole = written.archive.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    flipped = whole[place] ^ (1 << data.draw(st.integers(0, 7)))
    file = written.archive.with_name("flipped.zip")
    file.write_bytes(whole[:place] + bytes([flipped]) + whole[place + 1 :])
    try:
        found = export.load(file)
    except ValueError:
        with pytest.raises(ValueError, match=r"`export\.load\(path\)`"):
            export.load(file)
    else:
        wanted = export.load(written.archive)
        jax.tree.map(np.testing.assert_array_equal, found.params, wanted.params)


# What is there stays until the new one is whole ------------------------------


@pytest.mark.parametrize("name", ["m", "m.zip"])
def test_a_save_that_stops_leaves_the_old_one(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stops before each of the renames, one after the other."""
    place = tmp_path / name
    export.save(place, fn, params_of(), X)
    before = export.load(place)
    rename = os.replace
    for stop in range(1 if place.suffix else 4):
        left = [stop]

        def replace(*args: Any, left: list[int] = left) -> None:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            rename(*args)

        monkeypatch.setattr(os, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            export.save(place, fn, params_of(8), X)
        found = export.load(place)
        jax.tree.map(np.testing.assert_array_equal, found.params, before.params)
    monkeypatch.undo()
    export.save(place, fn, params_of(8), X)
    assert export.load(place).params["a/b"].shape == (8,)
    if place.is_dir():  # and nothing is left of what stopped
        stems = [x.name.split(".")[0] for x in place.iterdir()]
        assert sorted(stems) == ["manifest", "outputs", "params", "program"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["m", "m.zip"])
def test_a_save_that_is_killed_leaves_the_old_one(
    name: str, tmp_path: Path
) -> None:
    place = tmp_path / name
    export.save(place, fn, params_of(), X)
    child = """
        import os, signal, sys
        sys.path.insert(0, sys.argv[3])
        import jprune, test_export as t
        rename, left = os.replace, [int(sys.argv[2])]
        def replace(*args):
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            rename(*args)
        os.replace = replace
        more = t.jax.tree.map(lambda x: x + 1, t.params_of())
        jprune.export.save(sys.argv[1], t.fn, more, t.X)
        """
    before = export.load(place)
    for n in range(1 if place.suffix else 4):
        code = [sys.executable, "-c", textwrap.dedent(child)]
        died = subprocess.run(
            [*code, str(place), str(n), str(Path(__file__).parent)],
            check=False,
            capture_output=True,
        )
        assert died.returncode == -signal.SIGKILL, died.stderr.decode()
        found = export.load(place)
        jax.tree.map(np.testing.assert_array_equal, found.params, before.params)
    export.save(place, fn, params_of(8), X)
    assert export.load(place).params["a/b"].shape == (8,)


BAD = {
    "no folder": (
        lambda p: export.save(p / "x" / "m", fn, params_of(), X),
        "there is no folder",
    ),
    "other files": (
        lambda p: export.save(p, fn, params_of(), X),
        "holds other files, 'other' say",
    ),
    "a file": (
        lambda p: export.save(p / "other", fn, params_of(), X),
        "is a file. A bundle is a folder",
    ),
    "another plan": (
        lambda p: export.save(
            p / "m",
            fn,
            params_of(),
            X,
            plan=jprune.compact(fn, params_of(), X, masks=MASKS).plan,
        ),
        "the plan is that of other parameters: 'a/b'",
    ),
    "no plan": (
        lambda p: export.save(p / "m", fn, params_of(), X, plan="x"),  # type: ignore[arg-type]
        "must be the plan of a compact model",
    ),
    "shapes": (
        lambda p: export.save(
            p / "m", fn, jax.eval_shape(lambda: params_of()), X
        ),
        "the parameter 'a/b' must have values",
    ),
    "callback": (
        lambda p: export.save(
            p / "m",
            lambda w, x: jax.pure_callback(lambda x: x, x, x) * w,
            jnp.ones(()),
            X,
        ),
        "JAX can't export fn",
    ),
    "no bundle": (lambda p: export.load(p / "m"), "there is no"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_calls_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"")
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call(tmp_path)


def test_bad_inputs_are_named(written: Written) -> None:
    bundle = export.load(written.folder)
    with pytest.raises(ValueError, match="takes 1 arguments beside"):
        bundle.fn(bundle.params)
    with pytest.raises(ValueError, match="params must be a `dict` with"):
        bundle.fn({}, X)
    wrong = {**bundle.params, "a/b": jnp.ones(7)}
    with pytest.raises(ValueError, match="params, 'a/b', must be float32 of"):
        bundle.fn(wrong, X)
    with pytest.raises(ValueError, match="has no 'b/w'"):
        export.unflat({"a/w": X}, {"b": {"w": X}})


@pytest.mark.parametrize("name", ["safetensors.numpy", "flatbuffers"])
def test_a_missing_library_says_what_to_install(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r'pip install "jprune\[export\]"'):
        export.save(tmp_path / "m", fn, params_of(), X)
    assert not list(tmp_path.iterdir())


# Other formats ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "needs"),
    [
        (export.to_onnx, ["jax2onnx", "onnxruntime"]),
        (export.to_litert, ["litert_converter", "ai_edge_litert"]),
    ],
)
def test_other_formats(
    call: Any, needs: list[str], small: Any, tmp_path: Path
) -> None:
    for name in needs:
        pytest.importorskip(name)
    certificate = call(tmp_path / "m", small.fn, small.params, X)
    assert certificate.error < 1e-5
    dense = call(tmp_path / "dense", fn, params_of(), X)
    assert dense.error < 1e-5
    assert {x.name for x in tmp_path.iterdir()} == {"m", "dense"}
    np.testing.assert_allclose(  # no patch of a converter stays behind
        small.fn(small.params, X), jax.jit(small.fn)(small.params, X)
    )


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (export.to_onnx, "jax2onnx"),
        (export.to_litert, "litert_converter.converter_api_ext"),
    ],
)
def test_a_missing_converter_says_what_to_install(
    call: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install (jax2onnx|litert-)"):
        call(tmp_path / "m", fn, params_of(), X)


@pytest.mark.slow
def test_the_example_runs_elsewhere() -> None:
    script = Path(__file__).parent.parent / "examples" / "export.py"
    printed = subprocess.check_output(
        [sys.executable, str(script), "--steps=60", "--calls=3"], text=True
    )
    assert "params/Dense_1/kernel  256x128 -> 64x32" in printed
    (error,) = re.findall(r"Largest difference elsewhere: (\S+)\.", printed)
    assert float(error) < 1e-4
