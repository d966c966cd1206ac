"""Writes the tables of "What you gain" from what scripts have printed.

python docs/gains.py

The page `gains.md` has all rows, `README.md` and `index.md` the first ones in
fewer words. Numbers are read from `outputs/*.txt`. If an output has another
form than is read here, `Unread` names the file and what was looked for.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

import numpy as np
from printed import (
    MEAN,
    NUMBER,
    Unread,
    cells,
    difference,
    find,
    mean,
    minus,
    read,
    share,
    unread,
    value,
)
from run_examples import EXAMPLES, LONG, SCRIPTS

ROOT = Path(__file__).parent.parent
NONE = "-"


class Row(NamedTuple):
    """What one model gained, and the same in three cells of few words."""

    model: str
    call: str
    page: str  # that tells more
    run: str  # the name in `run_examples.py` of what printed it
    lost: str = NONE  # points
    left: str = NONE  # of the multiply-adds
    size: str = NONE  # bytes
    fast: Sequence[str] = (NONE, NONE, NONE)  # at batch 1, 32 and 256
    training: str = NONE
    minutes: str = NONE
    also: tuple[str, ...] = ()  # names of more that it was read from
    short: tuple[str, str, str] | None = None  # you have, jprune does, result


class Nothing(NamedTuple):
    """What was measured and gained nothing."""

    what: str
    measured: str
    why: str
    run: str


# Bytes before and after, and how many times as fast at batch 1, 32 and 256.
GAINED = (
    rf"({NUMBER}) -> ({NUMBER}) bytes, times as fast ({MEAN}) at batch 1, "
    rf"({MEAN}) at batch 32, ({MEAN}) at batch 256"
)


def compressed() -> Iterator[Row]:
    """Networks on which `compress` was let loose, with one point to lose."""
    names = {"mlp": "LeNet-300-100", "lenet5": "LeNet-5"}
    runs = [
        ("automatic_lenet", "mlp", "repaired"),
        ("automatic_lenet", "mlp", "distilled"),
        ("automatic_lenet5", "lenet5", "repaired"),
    ]
    for run, network, kind in runs:
        own = r"(?:(?!^compress, )[\s\S])*?"  # not those of another network
        below = rf"^compress, {network}: 1 point{own}^{kind}: "
        left, lost = find(
            run,
            rf"{below}({MEAN}) % of the multiply-adds left, "
            rf"({MEAN}) points lost",
        )
        dense, small, *fast, minutes = find(
            run, rf"{below}{GAINED}, ({MEAN}) minutes$"
        )
        does = "finds the smallest model"
        if kind == "distilled":
            does += ", trains it on the dense outputs"
        yield Row(
            f"{names[network]}, MNIST",
            "`compress`" + (", `distill`" if kind == "distilled" else ""),
            "automatic",
            run,
            lost,
            f"{left} %",
            f"{dense} → {small}",
            fast,
            minutes=f"{minutes} CPU",
            short=(
                f"a trained {names[network]}, MNIST, 1 point to lose",
                does,
                f"{left} % of the multiply-adds, {lost} points lost, "
                f"{fast[0]} times as fast at batch 1, {fast[2]} at 256",
            ),
        )


def one_shot() -> Row:
    """Half of the units go, without training."""
    run, heads = "one_shot_tables", "50 %  75 %  90 %"
    lost = minus(cells(run, heads, "OBS", 3)[0])
    plain = minus(cells(run, heads, "magnitude", 3)[0])
    left, dense, small, *fast, seconds = find(
        "one_shot_served",
        rf"^half of the units: ({MEAN}) % of the multiply-adds, {GAINED}, "
        rf"({MEAN}) seconds$",
    )
    return Row(
        "LeNet-300-100, MNIST",
        "`one_shot`, half of the units",
        "one_shot",
        run,
        lost,
        f"{left} %",
        f"{dense} → {small}",
        fast,
        minutes=f"{value(seconds)[0] / 60:.2f} CPU",
        also=("one_shot_served",),
        short=(
            "a trained LeNet-300-100, MNIST, no training",
            "removes half of the units, repairs the rest",
            f"{lost} points lost (without repair: {plain}), {fast[0]} times "
            f"as fast at batch 1, {fast[2]} at 256",
        ),
    )


def minilm() -> Row:
    run = "benchmarks/minilm"
    heads = "parameters  multiply-adds  bytes"
    _, whole, before = cells(run, heads, "dense", 3)
    _, part, after = cells(run, heads, "compact", 3)
    heads = "cosine  worst  nearest  of ten  noisy  batch 1  batch 32"
    cosine, *_, one, many = cells(run, heads, "distilled", 7)
    largest = cells("minilm_speed", f"{heads}  batch 256", "repaired", 8)[-1]
    search, train = find(
        run,
        rf"^minutes: ({NUMBER}) to search, prune, repair and compact, "
        rf"({NUMBER}) to distil",
    )
    return Row(
        "MiniLM, sentences",
        "`one_shot`, `distill`",
        "published",
        run,
        f"cosine {cosine}",
        share(part, whole),
        f"{before} → {after}",
        (one, many, largest),
        minutes=f"{value(search)[0] + value(train)[0]:.1f}",
        also=("minilm_speed",),
        short=(
            "a pretrained sentence encoder (MiniLM)",
            "removes half of its multiply-adds, then distils",
            f"cosine to the whole one {cosine}; {one} times as fast at batch "
            f"1, {many} at 32",
        ),
    )


def resnet(budget: int) -> Row:
    run = "benchmarks/resnet"
    heads = "error  worst  noisy  batch 1  batch 32  batch 256"
    before = cells(run, heads, "dense", 3)[0]
    after, _, _, *fast = cells(run, heads, f"{budget}%, distilled", 6)
    seeds = re.findall(
        rf"^seed \d+: ({NUMBER})% of the multiply-adds, ({NUMBER})% of the "
        rf"parameters, .*; ({NUMBER}) s to search, prune and repair, "
        rf"({NUMBER}) s to distil$",
        read(run),
        re.M,
    )
    numbers = [[float(x) for x in seed] for seed in seeds]
    numbers = [seed for seed in numbers if abs(seed[0] - budget) < 3]
    if len(numbers) < 2:
        raise Unread(unread(run, f"two seeds at {budget} %"))
    left, size, repair, train = zip(*numbers, strict=True)
    seconds = np.add(repair, train)
    short = None
    if budget == 25:
        short = (
            "a trained ResNet with BatchNorm, MNIST",
            "removes three quarters of the multiply-adds, then distils",
            f"error {before} → {after} %; {fast[0]} times as fast at batch 1, "
            f"{fast[2]} at 256",
        )
    return Row(
        "ResNet with BatchNorm, MNIST",
        "`one_shot`, `distill`",
        "published",
        run,
        difference(after, before),
        f"{mean(left)} %",
        f"to {mean(size)} %",
        fast,
        minutes=f"{mean(seconds / 60)} CPU",
        short=short,
    )


MEDICINE = "benchmarks/medicine"


def measurements(name: str) -> tuple[str, str, str, list[str], list[str]]:
    """How many are left, of how many, the points of recall lost, scores."""
    left, most = find(
        MEDICINE, rf"^{name}: ({MEAN}) of (\d+) measurements are left$"
    )
    heads = rf"^{name}: .*\n +recall +healthy +accuracy +noisy\n(?:.*\n)?"
    dense, small = (
        find(MEDICINE, heads + rf"{row} +({MEAN}) +({MEAN}) +")
        for row in ("dense", "small")
    )
    return left, most, difference(dense[0], small[0]), dense, small


def medicine() -> Row:
    left, most, lost, dense, small = measurements("breast cancer")
    seconds = find(MEDICINE, rf"^({NUMBER}) s on \d+ cores")[0]
    return Row(
        "breast cancer",
        "`compress`, whole inputs",
        "published",
        MEDICINE,
        f"{lost} (recall)",
        f"{left} of {most} inputs",
        minutes=f"{value(seconds)[0] / 60:.1f} in all",
        short=(
            "a network for breast cancer, 30 measurements",
            "finds out which it can do without",
            f"{left} are left; recall {dense[0]} → {small[0]} %",
        ),
    )


def compact() -> Row:
    """Units are removed while a network of digits trains."""
    run = "compact"
    heads = (
        "units  accuracy  parameters  bytes  products  ms at 1  speed-up  "
        "ms at 32  speed-up  ms at 256  speed-up"
    )
    before, _, size, products, *_ = cells(run, heads, "dense", 10)
    after, _, small, fewer, _, one, _, some, _, many = cells(
        run, heads, "90%", 10
    )
    seconds = find(run, rf"^({NUMBER}) s in all\.$")[0]
    return Row(
        "MLP 64-300-100-10, digits",
        "`prune`, `compact`",
        "compaction",
        run,
        difference(before, after),
        share(fewer, products),
        f"{size} → {small}",
        (one, some, many),
        minutes=f"{value(seconds)[0] / 60:.1f} in all",
        short=(
            "an MLP to train, digits",
            "removes 90 % of the units",
            f"{before} → {after} %; {size} → {small} bytes; {many} times as "
            f"fast at batch 256, {one} at 1",
        ),
    )


SHRUNK = (
    *("units", "products", "accuracy", "against", "clock", "times"),
    *("seconds", "faster"),
)


def shrunk(run: str) -> dict[str, Any]:
    """A training that gets smaller, beside the dense one."""
    heads = (
        "training  units  multiply-adds  accuracy, %  against dense  seconds  "
        "times faster  CPU seconds  times faster"
    )
    dense, small = (
        dict(zip(SHRUNK, cells(run, heads, row, 8), strict=True))
        for row in ("dense", "shrinking")
    )
    served = "training  bytes  faster at 1  faster at 32  faster at 256"
    size = cells(run, served, "dense", 4)[0]
    smaller, *fast = cells(run, served, "shrinking", 4)
    return {
        "lost": minus(small["against"]),
        "size": f"{size} → {smaller}",
        "fast": fast,
        "left": share(small["products"], dense["products"]),
        "faster": small["faster"],
        "minutes": f"{value(small['seconds'])[0] / 60:.1f} CPU",
        "accuracy": f"{dense['accuracy']} → {small['accuracy']} %",
    }


def shrinking() -> Row:
    run = "benchmarks/shrinking"
    found = shrunk(run)
    return Row(
        "MLP 784-1024-1024-10, MNIST",
        "`prune`, `compact`, `take`",
        "sparse_training",
        run,
        found["lost"],
        found["left"],
        found["size"],
        found["fast"],
        training=found["faster"],
        minutes=found["minutes"],
        short=(
            "an MLP to train, MNIST",
            "shrinks it on the way",
            f"{found['accuracy']}; training {found['faster']} times as fast "
            f"(CPU seconds); {found['fast'][2]} times as fast at batch 256",
        ),
    )


QUANTIZED = "benchmarks/quantized"


def files(row: str) -> tuple[str, str, str]:
    """Bytes of a file, accuracy, microseconds of a call."""
    heads = "model, format  bytes  accuracy  µs, median  zeros"
    size, accuracy, time, _ = cells(QUANTIZED, heads, row, 4)
    return f"{int(size):,}", accuracy, time


def shipped() -> Row:
    before, dense, slow = files("dense, ONNX")
    after, small, fast = files("compact, ONNX int8")
    return Row(
        "MLP 64-256-128-10, digits",
        "`prune`, `to_onnx`, int8",
        "export",
        QUANTIZED,
        difference(dense, small),
        f"{find(QUANTIZED, rf'^compact: ({NUMBER})% of')[0]} %",
        f"{before} → {after}",
        fast=(f"{float(slow) / float(fast):.2f}", NONE, NONE),
        short=(
            "a network to ship, digits",
            "removes 75 % of the units, then int8",
            f"{dense} → {small} %; {before} → {after} bytes of ONNX",
        ),
    )


def calls(before: str, after: str) -> str:
    """Microseconds of a call in both formats."""
    found = []
    for kind in ("ONNX", "LiteRT"):
        names = (row.format(kind) for row in (before, after))
        slow, fast = (files(name)[2] for name in names)
        found.append(f"{kind} {slow} → {fast} µs")
    return ", ".join(found)


def nothing() -> Iterator[Nothing]:
    """What gained nothing, or not what one would expect."""
    sizes = (files(f"{row}, ONNX")[0] for row in ("dense", "sparse"))
    yield Nothing(
        "90 % scattered zeros, exported",
        f"{calls('dense, {}', 'sparse, {}')}; {' → '.join(sizes)} bytes",
        "zeros are stored and multiplied like other numbers; what differs is "
        "noise",
        QUANTIZED,
    )
    run, heads = "benchmarks/lenet", "weights left  error  worst  noisy"
    before, after = (cells(run, heads, f"{x}%", 3)[0] for x in ("100.0", "5.0"))
    yield Nothing(
        "LeNet-300-100 with 5 % of its weights: speed",
        f"{difference(after, before)} points lost, arrays as large as before",
        "only a file of `save_sparse` gets smaller",
        run,
    )
    yield Nothing(
        "int8 after units are removed: speed",
        calls("compact, {}", "compact, {} int8"),
        "the call takes longer than such small products; int8 saves bytes",
        QUANTIZED,
    )
    slow, fast = (
        find("export", rf"^{name}, in Python +(\d+)$")[0]
        for name in ("dense", "small")
    )
    yield Nothing(
        "a small MLP, called from Python with one image",
        f"{slow} → {fast} µs",
        "the call takes longer than the products",
        "export",
    )
    found = shrunk("one_ranking_l2")
    yield Nothing(
        "LeNet-300-100, shrunk on the way: training",
        f"{found['faster']} times as fast, {found['lost']} points lost",
        "compiling takes most of what the shorter steps save",
        "one_ranking_l2",
    )
    run = "benchmarks/train_step"
    heads = (
        "case  step  ms  x bare  trace + compile, s  state, bytes  "
        "more per weight"
    )
    few, many = (
        cells(run, heads, f"batch {size} | keep_masks", 5)[1]
        for size in (32, 256)
    )
    yield Nothing(
        "a training step with masks",
        f"{few} times as long at batch 32, {many} at 256",
        "the products of a step stay whole",
        run,
    )
    left, most, _, dense, small = measurements("diabetes")
    yield Nothing(
        "diabetes: fewer measurements",
        f"{left} of {most} are left, recall {dense[0]} → {small[0]} %",
        "fewer might cost more than the 10 points that may be lost",
        MEDICINE,
    )
    run = "distill"
    effect = find(run, rf"^No effect is seen: ({MEAN}) points")[0]
    yield Nothing(
        "a dense teacher, 98 % of the weights pruned, digits",
        f"{effect} points",
        "within two standard errors of 0",
        run,
    )


def rows() -> list[Row]:
    """All that gained something."""
    first, distilled, lenet5 = compressed()
    return [
        first,
        distilled,
        one_shot(),
        lenet5,
        minilm(),
        resnet(50),
        resnet(25),
        medicine(),
        compact(),
        shrinking(),
        shipped(),
    ]


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table, its heads first."""
    lines = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def short(folder: str = "") -> str:
    """The table of README and index."""
    found = [
        (row.short[0], f"[{row.short[1]}]({folder}{row.page}.md)", row.short[2])
        for row in rows()
        if row.short
    ]
    return markdown([("you have", "what jprune does", "result"), *found])


def whole() -> str:
    """All rows and columns."""
    lines: list[Sequence[str]] = [
        (
            *("model, data", "call", "points lost", "multiply-adds left"),
            *("bytes", "faster at 1", "at 32", "at 256", "training", "minutes"),
        )
    ]
    for row in rows():
        lines.append(
            (
                f"[{row.model}]({row.page}.md)",
                *(row.call, row.lost, row.left, row.size, *row.fast),
                *(row.training, row.minutes),
            )
        )
    return markdown(lines)


def lost_causes() -> str:
    """What gained nothing."""
    return markdown([("what", "measured", "why"), *(x[:3] for x in nothing())])


def commands() -> str:
    """Which script with which flags printed what."""
    names: dict[str, list[str]] = {}
    for row in rows():
        for run in (row.run, *row.also):
            names.setdefault(run, []).append(f"{row.model}, {row.call}")
    for one in nothing():
        names.setdefault(one.run, []).append(one.what)
    lines = []
    for run, of in names.items():
        flags = {**EXAMPLES, **LONG}.get(run, [])
        script = f"python examples/{SCRIPTS.get(run, run)}.py"
        command = " ".join([script, *map(quote, flags)])
        lines.append(f"- `{run}`: {'; '.join(dict.fromkeys(of))}. `{command}`")
    return "\n".join(lines)


PAGES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"gains": lambda: short("docs/")},
    "docs/index.md": {"gains": short},
    "docs/gains.md": {
        "gains": whole,
        "nothing gained": lost_causes,
        "commands": commands,
    },
}


def filled(page: str) -> str:
    """The text of a page with its tables as they are now."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for name, make in PAGES[page].items():
        begin = f"<!-- {name}: written by docs/gains.py -->\n"
        before, found, rest = text.partition(begin)
        _, end, after = rest.partition("<!-- end -->\n")
        if not found or not end:
            raise Unread(f"{page} has no table between {begin!r} and its end.")
        text = f"{before}{begin}\n{make()}\n\n{end}{after}"
    return text


if __name__ == "__main__":
    for page in PAGES:
        (ROOT / page).write_text(filled(page), encoding="utf-8")
