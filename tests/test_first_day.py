"""The short examples: each runs, and what it shows is true.

The default run takes a few steps of each, in this process; the slow one takes
all of them as a user does, and compares with the documentation.
"""

import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import jprune

ROOT = Path(__file__).parent.parent
EXAMPLES = runpy.run_path(str(ROOT / "docs" / "run_examples.py"))["EXAMPLES"]
Run = Callable[..., tuple[dict[str, Any], str]]


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    quick_compilation: bool,
) -> Run:
    """Runs an example here; returns its variables and what it printed."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    quick = str(int(quick_compilation))
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", quick)  # of children

    def run(name: str, *flags: str) -> tuple[dict[str, Any], str]:
        file = str(ROOT / "examples" / f"{name}.py")
        monkeypatch.setattr(sys, "argv", [file, *flags])
        names = runpy.run_path(file, run_name="__main__")
        printed = capsys.readouterr()
        assert "100%" in printed.err, "progress is shown"
        return names, printed.out

    return run


def zeros(params: Any) -> list[int]:
    """Zeros of each kernel, counted in the weights themselves."""
    kernels = [np.asarray(p) for p in jax.tree.leaves(params)]
    return [int(np.sum(k == 0)) for k in kernels if k.ndim >= 2]


@pytest.mark.slow
def test_quickstart(run: Run) -> None:
    names, printed = run("quickstart", "--steps=40")
    assert zeros(names["params"]) == [3753, 3754, 442]
    assert " 90.0%  7,949" in printed
    code = (ROOT / "examples" / "quickstart.py").read_text().split('"""')[2]
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 30


@pytest.mark.slow
def test_flax_nnx(run: Run) -> None:
    names, printed = run("flax_nnx", "--steps=40", "--sparsity=0.5")
    model = names["model"]
    kernels = [x.kernel[...] for x in (model.conv, model.hidden, model.out)]
    pruned = [int(np.sum(kernel == 0)) for kernel in kernels]
    assert pruned[0] == 0  # the smallest layer is dense
    assert sum(pruned) == (144 + 16384 + 640) // 2
    assert np.all(model.norm.scale[...] != 0)
    kept = 16384 - pruned[1]
    assert f"hidden/kernel  256x64    float32   16,384  {kept:,}" in printed


@pytest.mark.slow
def test_flax_train_state(run: Run, tmp_path: Path) -> None:
    plot = tmp_path / "plot.png"
    names, _ = run("flax_train_state", "--steps=60", f"--plot={plot}")
    sparsities = [row[1] for row in names["log"]]
    assert sparsities == sorted(sparsities)
    assert abs(sparsities[-1] - 0.95) < 1e-3
    assert zeros(names["state"].params) == [3924, 3925, 541]
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_one_shot(run: Run) -> None:
    names, printed = run("one_shot", "--steps=300")
    found = names["found"]
    for what in ("80 % of the weights", "90 % of the weights"):
        assert found[what] > found[f"{what}, magnitude"]
    assert found["compact"] == found["50 % of the units"]
    error = re.search(r"largest error (\S+) of outputs", printed)
    assert error
    assert float(error[1]) < 1e-4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*VariableState.*:DeprecationWarning")
def test_quantize(run: Run) -> None:
    pytest.importorskip("qwix")
    names, _ = run("quantize", "--steps=300")
    rows = names["rows"]
    _, _, zeros = rows["80 % pruned"]
    pruned = round(0.8 * 64 * 128) + round(0.8 * 128 * 64) + 512
    assert pruned <= zeros < 1.01 * pruned  # a few that were kept round to 0
    for full, small, found in rows.values():
        assert abs(full - small) < 1.5
        assert found < pruned / 10 or found >= pruned


@pytest.mark.slow
def test_checkpoint(run: Run) -> None:
    flags = ("--steps=12", "--every=4", "--kill=10")
    names, printed = run("checkpoint", *flags)
    assert names["first"] == 8
    assert all(names["identical"].values())
    straight, resumed = names["straight"], names["resumed"]
    assert names["same_bits"](straight, resumed)
    resumed["params"]["params"]["Dense_0"]["kernel"] += 1e-6
    assert not names["same_bits"](straight, resumed), "it can see a difference"
    assert printed.count("bit for bit the same") == 3


@pytest.mark.slow
def test_load_prune_save(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "pruned.safetensors"
    names, printed = run("load_prune_save", "--steps=3", f"--output={file}")
    saved = load_file(file)
    assert sum(zeros(saved)) == round(0.9 * 8832)
    for name, value in names["tuned"].items():
        np.testing.assert_array_equal(saved[name], value)
    dense, pruned = re.findall(r"% +36336 +(\d+)", printed)
    assert int(pruned) < int(dense) / 3
    file.rename(tmp_path / "again.st")
    flags = ("--steps=1", f"--input={tmp_path / 'again.st'}")
    names, _ = run("load_prune_save", *flags, "--sparsity=0.95")
    assert names["source"] == tmp_path / "again.st"
    assert sum(zeros(names["pruned"])) == round(0.95 * 8832)


@pytest.mark.slow
def test_ema(run: Run) -> None:
    found = run("ema", "--steps=40")[0]["zeros"]
    masked = [name for name in found if name.endswith((": weights", "masked"))]
    assert len(masked) == 4
    for name, share in found.items():
        assert share > 0.89 if name in masked else share < 0.1


@pytest.mark.slow
def test_shrink_while_training(run: Run) -> None:
    names, printed = run("shrink_while_training", "--steps=120", "--width=32")
    assert all(error < 1e-4 for error in names["errors"])
    first, second, third = (
        int(row[1].replace(",", "")) for row in names["rows"]
    )
    assert first == 64 * 32 + 32 * 32 + 32 * 10
    assert first > second > third
    last = jprune.report.cost(names["fn"], names["params"], names["image"])
    assert last.dense.multiply_adds <= 0.2 * first
    assert int(names["state"][1].count) == 120, (
        "one schedule, and not begun anew"
    )
    assert "units that are left: {'params/Dense_0/bias[0]'" in printed


@pytest.mark.slow
def test_breast_cancer(run: Run, tmp_path: Path) -> None:
    plot = tmp_path / "plot.png"
    flags = ("--steps=40", "--splits=2", f"--plot={plot}")
    names, _ = run("breast_cancer", *flags)
    kept = [row[1] for row in names["rows"]]
    assert kept == [496 - round(s * 496) for s in names["SPARSITIES"]]
    reads = [int(read[0].sum()) for read in names["reads"]]
    assert reads[0] == 30
    assert 0 < reads[-1] <= 5
    first = names["runs"][-1][0]["params"]["Dense_0"]["kernel"][0]
    assert reads[-1] == int(np.any(first != 0, axis=1).sum())
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_text_mlp(run: Run) -> None:
    names, _ = run("text_mlp", "--steps=40")
    params = names["params"]["params"]
    assert np.all(params["Embed_0"]["embedding"] != 0)
    assert zeros(params["MLP_0"]) == [1943, 3956, 181]


@pytest.mark.slow
def test_sharded(run: Run) -> None:
    names, printed = run("sharded", "--steps=24")
    mask = names["eight_masks"]["params"]["Dense_0"]["kernel"]
    assert len(mask.sharding.device_set) == 8
    assert mask.addressable_shards[0].data.shape == (64, 16)
    differing = names["differing"]
    assert differing(names["one_masks"], names["eight_masks"]) == 0
    assert differing(*names["same"]) == 0
    assert "(64, 16)    90.00%" in printed


@pytest.mark.slow
def test_two_hosts(run: Run) -> None:
    names, printed = run("two_hosts", "--steps=24")
    assert names["differing"](names["one_masks"], names["two_masks"]) == 0
    assert names["file"].masks.keys() == names["file"].params.keys() - {
        f"params/Dense_{i}/bias" for i in range(3)
    }
    assert "two hosts      90.00%" in printed
    assert printed.count("  0 from those") == 2


@pytest.mark.slow
def test_parallelism(run: Run) -> None:
    names, printed = run("parallelism")
    assert heads(printed) == heads(shown("parallelism"))
    assert len(names["results"]) == len(names["SHAPES"]) == 8
    for way, (found, trained) in names["results"].items():
        assert len(found) == len(trained) == 6
        for where, what, wrong, alike, travels, weight in found:
            assert wrong == 0
            assert travels < weight / 4, "no weight is gathered"
            if what != "units" or where.endswith("Explicit"):
                assert alike == "yes", where
            assert "(no outside" not in alike
        for where, what, wrong, zeros_lost, *yes in trained:
            assert (wrong, zeros_lost) == (0, 0), (where, what)
            assert yes == ["yes"] * 3, (way, where, what)
    at_once, unfetched, apart = (what for _, what in names["refused"])
    assert at_once.startswith("Received incompatible devices")
    assert unfetched.startswith("memory_space")
    assert apart == "0 differ, divided alike"


@pytest.mark.slow
def test_mixed_precision(run: Run) -> None:
    rows = {
        row[0]: row[1:]
        for row in run("mixed_precision", "--steps=80")[0]["rows"]
    }
    wrong = {
        "the pruner sees the bfloat16 copy": (True, True),
        "chain(with_master(adam), pruner)": (True, False),
    }
    assert wrong.keys() < rows.keys()
    for name, (sparsity, full, half, skipped, _) in rows.items():
        lost = full not in (0, "-"), half != 0
        assert lost == wrong.get(name, (False, False)), name
        assert sparsity == "90.0%"
        assert (skipped > 0) == ("float16 pass" in name.replace("bfloat16", ""))


@pytest.mark.slow
def test_chain_order(run: Run) -> None:
    _, printed = run("chain_order", "--steps=5", "--only=optax.clip")
    assert "_norm(1.0), adamw, pruner)` | holds all 28 |" in printed
    assert re.search(r"clip\(0.01\)\)` \| revives \d+ of 28 \|", printed)


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_examples_have_help(name: str) -> None:
    text = (ROOT / "examples" / f"{name}.py").read_text()
    assert f"python examples/{name}.py" in text.split('"""')[1]
    assert re.search("flags\\($|ArgumentParser\\(", text, re.M)


HELP = """
import contextlib, io, os, runpy, sys
for script in sys.argv[1:]:
    sys.argv, sys.path[0] = [script, "--help"], os.path.dirname(script)
    printed, code = io.StringIO(), "none"
    try:
        with contextlib.redirect_stdout(printed):
            runpy.run_path(script, run_name="__main__")
    except SystemExit as stop:
        code = stop.code
    assert code in (0, None), (script, code)
    assert printed.getvalue().startswith("usage: "), script
"""


@pytest.mark.slow
def test_every_script_explains_itself() -> None:
    """In one process: importing jax is most of the work."""
    pytest.importorskip("qwix")
    scripts = [
        p
        for p in sorted((ROOT / "examples").rglob("*.py"))
        if p.name not in ("common.py", "served.py")  # what they share
        and p.parent.name != "tutorials"  # without flags: they are read
    ]
    # Those that ask for several devices must do so before others compute.
    scripts.sort(key=lambda p: "jax_num_cpu_devices" not in p.read_text())
    subprocess.check_call([sys.executable, "-c", HELP, *map(str, scripts)])


def heads(text: str) -> list[str]:
    """How the lines with numbers begin, and no numbers."""
    lines = [line for line in text.splitlines() if re.search(r"\d", line)]
    starts = [re.split(r"  +|\|", line.lstrip("| "))[0] for line in lines]
    return [re.sub(r"[\d.,%e-]+", "#", start) for start in starts]


def shown(name: str) -> str:
    """What the docs say that an example prints."""
    return (ROOT / "docs" / "outputs" / f"{name}.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", sorted({*EXAMPLES} - {"chain_order", "parallelism"})
)
def test_whole_example_prints_what_the_docs_show(name: str) -> None:
    if name == "quantize":
        pytest.importorskip("qwix")
    command = [sys.executable, f"examples/{name}.py"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert heads(found.stdout) == heads(shown(name))


def tables(printed: str) -> list[list[list[str]]]:
    """The rows of each table, without its head."""
    found: list[list[list[str]]] = []
    for line in printed.splitlines():
        if line.startswith("|---"):
            found.append([])
        elif found and line.startswith("|"):
            found[-1].append([cell.strip() for cell in line.split("|")[1:-1]])
        elif found and line:
            raise AssertionError(line)
    heads_of_next = [rows.pop() for rows in found[:-1]]
    assert all(map(any, heads_of_next)), "a head names its columns"
    return found


@pytest.mark.heavy
def test_benchmark_of_the_training_step() -> None:
    command = [sys.executable, "examples/benchmarks/train_step.py"]
    command += ["--rounds=1", "--steps=1", "--leaves=2", "--layers=1"]
    printed = subprocess.check_output(command, cwd=ROOT, text=True)
    steps, compiled, cold = tables(printed)
    assert [len(steps), len(compiled), len(cold)] == [15, 8, 4]
    for _, _, seconds, ratio, _ in compiled:
        assert float(seconds) > 0
        assert float(ratio) > 0.5
    for case, step, *_, state, more in steps:
        masked = step.strip().startswith(("keep_masks", "prune"))
        assert float(more) == masked, "a byte per weight"
        assert int(state.replace(",", "")) > (
            8192 if "leaves" in case else 10**7
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "flags", "first"),
    [
        (
            "selection",
            ["--quick", "--no-sorts"],
            {"1e+06"},
        ),
        (
            "straight_through",
            ["--rounds=1", "--batch=8"],
            {
                "dense",
                "straight-through, masks fixed",
                "straight-through, uniform",
                "straight-through, one ranking",
            },
        ),
    ],
)
def test_other_benchmarks(
    script: str, flags: list[str], first: set[str]
) -> None:
    """Their tables have the rows that they should, with times in them."""
    command = [sys.executable, f"examples/benchmarks/{script}.py", *flags]
    printed = subprocess.check_output(command, cwd=ROOT, text=True)
    rows, *more = tables(printed)
    assert {row[0] for row in rows} == first
    assert all(re.search(r"\|\d+\.\d+\|", "|".join(row)) for row in rows)
    for row in more[0] if more else ():
        passes = list(map(int, row[3].split(",")))
        assert int(row[4]) == 4 * sum(passes)  # bytes of float32
        assert passes[0] >= 1
        assert passes[2] == 1


@pytest.mark.slow
def test_the_script_for_gpus_runs_here() -> None:
    command = [sys.executable, "examples/benchmarks/gpu.py", "--quick"]
    command += ["--only", "one_shot", "compaction"]
    printed = subprocess.check_output(command, cwd=ROOT, text=True)
    assert printed.count("dense passes") == 2
    assert "one_shot by sparsegpt()" in printed
    assert "| 1 | 90% |" in printed


@pytest.mark.slow
def test_every_pruner_at_the_end_holds(run: Run) -> None:
    names, printed = run("chain_order")
    assert heads(printed) == heads(shown("chain_order"))
    results = names["results"]
    assert len(results) > 40
    for code, (verdict, *_) in results.items():
        if code.startswith("optax.chain(") and code.endswith(
            (", pruner)", ", of_fast)")
        ):
            assert verdict.startswith("holds"), code
    for wrapper in ("lookahead", "contrib.schedule_free", "contrib.mechanize"):
        (inside,) = (
            verdict
            for code, (verdict, *_) in results.items()
            if code.startswith(f"optax.{wrapper}(") and "reset" not in code
        )
        assert inside.startswith("revives")


@pytest.mark.parametrize(
    "page",
    ["README.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))],
)
def test_pages_name_what_exists(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for name in re.findall(r"(?<![/.\w])jprune((?:\.[a-z]\w*)+)", text):
        found: Any = jprune
        for part in name.split(".")[1:]:
            if part not in ("models", "py"):
                found = getattr(found, part)
    for file in re.findall(r"(?:examples|docs)/[\w/]+\.(?:py|png|txt)", text):
        assert (ROOT / file).exists(), file
    for file in re.findall(r"(?:\.\./examples|outputs)/[\w/]+\.\w+", text):
        assert (ROOT / "docs" / file).exists(), file
