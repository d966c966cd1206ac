"""Recipes of prune and a schedule, and the examples of sparse training."""

import importlib
import itertools
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from test_optimizers import OPTIMIZERS

import jprune

ROOT = Path(__file__).parent.parent
PARAMS = jax.random.normal(jax.random.key(0), (8, 8))


def follow(tx: Any, steps: int) -> list[tuple[Any, Any]]:
    """Parameters and masks after each step, drawn to changing places."""

    @jax.jit
    def step(params: Any, state: Any, i: Any) -> Any:
        grads = params - jnp.roll(PARAMS, i, axis=1)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params, state, seen = PARAMS, tx.init(PARAMS), []
    for i in range(steps):
        params, state = step(params, state, i)
        masks = jprune.get_masks(state)
        seen.append((np.asarray(params), np.asarray(masks)))
    return seen


def test_alternating_dense_and_sparse_phases() -> None:
    def phases(count: Any) -> Any:
        return 0.75 * ((count // 4) % 2)

    tx = optax.chain(optax.adam(0.3), jprune.prune(phases, every=4))
    seen = follow(tx, 16)
    for count, (params, mask) in enumerate(seen):
        wanted = 16 if (count // 4) % 2 else 64
        assert mask.sum() == wanted
        assert not params[~mask].any()
        if wanted == 64 and count % 4 > 0:
            assert np.all(params != 0), "what returned is trained"
    assert np.any(seen[4][1] != seen[12][1]), "each phase chooses anew"


def test_decreasing_sparsity() -> None:
    schedule = optax.polynomial_schedule(0.75, 0.25, 1, 8)
    tx = optax.chain(optax.adam(0.3), jprune.prune(schedule, every=2))
    seen = follow(tx, 12)
    masks = [mask for _, mask in seen]
    assert [int(m.sum()) for m in masks[::2]] == [16, 24, 32, 40, 48, 48]
    for (params, old), (_, new) in itertools.pairwise(seen):
        assert np.all(new[old]), "what is kept stays"
        assert not params[~old].any(), "what returns starts at zero"
    assert np.count_nonzero(seen[-1][0]) == 48


@pytest.mark.slow
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_returning_weights_are_the_same_on_a_mesh(kind: AxisType) -> None:
    def phases(count: Any) -> Any:
        return 0.75 * ((count // 2) % 2)

    tx = optax.chain(optax.adam(0.3), jprune.prune(phases, every=2))

    def run(params: Any) -> list[Any]:
        state, seen = tx.init(params), []
        update = jax.jit(tx.update)
        for _ in range(8):
            updates, state = update(jnp.cos(7 * params), state, params)
            params = optax.apply_updates(params, updates)
            seen.append(np.asarray(jprune.get_masks(state)))
        return seen

    alone = run(PARAMS)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        sharding = NamedSharding(mesh, PartitionSpec(None, "x"))
        together = run(jax.device_put(PARAMS, sharding))
    assert [mask.sum() for mask in alone] == [64, 64, 16, 16] * 2
    np.testing.assert_array_equal(alone, together)


def test_lottery_ticket() -> None:
    ticket, masks = PARAMS, jnp.ones_like(PARAMS, dtype=bool)
    for sparsity in (0.5, 0.75):
        tx = optax.chain(optax.adam(0.3), jprune.keep_masks(masks))
        params, state = ticket, tx.init(ticket)
        for i in range(5):
            grads = params - jnp.roll(PARAMS, i, axis=1)
            updates, state = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
        before, masks = masks, jprune.find_masks(params, sparsity, masks=masks)
        assert not np.any(masks & ~before)
        ticket = jprune.apply_masks(PARAMS, masks)
    assert int(masks.sum()) == 16
    chex.assert_trees_all_equal(ticket[masks], PARAMS[masks])


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "examples")
    pytest.importorskip("sklearn")
    return importlib.import_module


def test_table_of_optimizer_states_is_that_of_the_docs(
    examples: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    script = examples("optimizer_states")
    script.main([])
    printed = capsys.readouterr().out
    assert printed in (ROOT / "docs" / "sparse_training.md").read_text("utf-8")
    assert printed.count("refused") == 2
    assert {"adam", "nadam", "lbfgs", "muon"} < set(script.optimizers())
    for name in {**OPTIMIZERS, "schedule_free": None}:
        assert f"\n| {name} | " in printed


@pytest.mark.slow
def test_digits_trains_and_prints(
    examples: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    digits = examples("digits_sparse_training")
    methods = {name: digits.METHODS[name] for name in ("dense", "static")}
    monkeypatch.setattr(digits, "METHODS", methods)
    flags = ["--quick", "--sparsity=.9"]
    digits.main([*flags, f"--plot={tmp_path / 'digits.png'}"])
    out, err = capsys.readouterr()
    assert re.search(r"static +90 % .* kept 5020\.\.5020$", err, re.M)
    assert re.search(r"^\| static \| \d+\.\d\d ± \d+\.\d\d \|$", out, re.M)
    assert "- 90 %: static; against dense" in out
    assert (tmp_path / "digits.png").read_bytes().startswith(b"\x89PNG")

    # Compiled anew, for another number of images.
    monkeypatch.setattr(digits, "METHODS", {"dense": methods["dense"]})
    digits.main([*flags, "--validate"])
    out = capsys.readouterr().out
    assert "| method | sparsity | rate 0.003 | rate 0.01 | rate 0.03 |" in out
    assert re.search(r"^\| dense \| 0 % \| \d", out, re.M)
    assert re.search(r"^- dense: 0\.\d+$", out, re.M)
    data = digits.load_data()
    aside = digits.split(data.x, data.y)
    assert len(aside.x) + len(aside.x_test) == len(data.x) == 1347
    assert set(map(bytes, aside.x)) | set(map(bytes, aside.x_test)) == set(
        map(bytes, data.x)
    )


def test_rate_is_that_of_the_nearest_sparsity(
    examples: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    digits = examples("digits_sparse_training")
    monkeypatch.setitem(digits.CHOSEN, "RigL", {0.9: 1.0, 0.99: 2.0})
    found = [digits.chosen_rate("RigL", s) for s in (0.5, 0.9, 0.96, 0.999)]
    assert found == [1.0, 1.0, 2.0, 2.0]


def test_outputs_shown_are_those_of_the_scripts(examples: Any) -> None:
    """They take too long to be made again here; what can be told is."""
    digits = examples("digits_sparse_training")
    shown = {
        name: (ROOT / "docs" / "outputs" / f"{name}.txt").read_text("utf-8")
        for name in ("digits_sparse_training", "digits_validation", "distill")
    }
    assert list(digits.CHOSEN) == list(digits.METHODS)
    found = {
        name: re.findall(r"^\| ([\w-]+) \| \d.* ± ", text, re.M)
        for name, text in shown.items()
    }
    assert found["digits_sparse_training"] == list(digits.CHOSEN)
    assert found["digits_validation"] == [
        name for name, rates in digits.CHOSEN.items() for _ in rates
    ]
    for name in ("digits_sparse_training", "digits_validation"):
        assert "2,000 steps" in shown[name]
    for name, rates in digits.CHOSEN.items():
        best = ", ".join(f"{rate:g}" for rate in rates.values())
        assert f"\n- {name}: {best}\n" in shown["digits_validation"]
    assert "| 90 % | 95 % | 98 % | 99 % |" in shown["digits_sparse_training"]
    assert shown["distill"].count("| 1,004 |") == 2
    gain, error = re.findall(
        r"([+-]?\d\.\d\d) ± (\d\.\d\d) p", shown["distill"]
    )[0]
    words = examples("distill").conclude(float(gain), float(error))
    assert words in shown["distill"]


@pytest.mark.parametrize("name", ["digits_sparse_training", "distill"])
def test_help_and_bad_flags(
    name: str, examples: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    main = examples(name).main
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert "--quick" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["--sparsity", "1.5"])
    assert stop.value.code == 2
    assert "--sparsity must lie in [0, 1)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("gain", "error", "words"),
    [(1.0, 0.6, "No effect"), (1.0, 0.4, "helped"), (-1.0, 0.4, "did harm")],
)
def test_distill_concludes_what_was_found(
    gain: float, error: float, words: str, examples: Any
) -> None:
    assert words in examples("distill").conclude(gain, error)


@pytest.mark.slow
def test_distill_quick(examples: Any, capsys: Any) -> None:
    examples("distill").main(["--quick"])
    out = capsys.readouterr().out
    assert out.count("| 1,004 |") == 2
    assert "points" in out


@pytest.mark.heavy
def test_digits_quick_runs_every_method(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    script = ROOT / "examples" / "digits_sparse_training.py"
    monkeypatch.setattr(sys, "argv", [str(script), "--quick"])
    runpy.run_path(str(script), run_name="__main__")
    out = capsys.readouterr().out
    for name in ("dense", "gradual", "straight-through", "RigL", "SET"):
        assert f"| {name} | " in out
