"""Runs the examples and keeps what they print and draw for the documentation.

python docs/run_examples.py              # all but the benchmarks and LONG
python docs/run_examples.py quickstart benchmarks/train_step
MNIST=mnist.npz python docs/run_examples.py benchmarks/shrinking
JAXPRUNER=folder python docs/run_examples.py benchmarks/peers
MODEL=folder TEXT=sentences.txt python docs/run_examples.py benchmarks/minilm
"""

import subprocess
import sys
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).parent.parent
IMAGES = "docs/images"
EXAMPLES = {
    "quickstart": [],
    "flax_train_state": [f"--plot={IMAGES}/flax_train_state.png"],
    "flax_nnx": [],
    "checkpoint": [],
    "load_prune_save": [],
    "ema": [],
    "one_shot": [],
    "quantize": [],
    "shrink_while_training": [],
    "breast_cancer": [f"--plot={IMAGES}/breast_cancer.png"],
    "text_mlp": [],
    "sharded": [],
    "parallelism": [],
    "mixed_precision": [],
    "two_hosts": [],
    "chain_order": [],
    "iris": [f"--plot={IMAGES}/iris.png"],
}
ONE_RANKING = [
    *("--widths", "300", "100", "--sparsity=.9", "--stages=3"),
    *("--batch=64", "--rate=2e-3"),
]
NO_WINDOWS = "straight-through, Erdos-Renyi, no windows, activation"
LENET_5 = [
    *("--networks", "LeNet-5", "--longer=3", "--recipes", NO_WINDOWS),
    "--sparsities",
]
# These take many minutes, print times or need converters: only where they are
# named.
LONG = {
    "digits_sparse_training": [f"--plot={IMAGES}/digits_sparse_training.png"],
    "digits_validation": ["--validate", "--seeds=4"],
    "distill": [],
    "compact": [],
    "accuracy_networks": ["--only=networks", "--seeds=3"],
    "export": [],
    "benchmarks/quantized": [],
    "benchmarks/shrinking": [],
    "automatic": [f"--plot={IMAGES}/automatic.png"],
    "automatic_networks": [],
    "automatic_lenet": [
        *("--networks", "mlp", "--only=promises"),
    ],
    "automatic_lenet5": [
        *("--networks", "lenet5", "--only=promises", "--kinds=repaired"),
    ],
    "repaired_curves": ["--networks", "mlp", "--only=repaired"],
    "one_ranking": [*ONE_RANKING, "--allocation=global_ranking"],
    "one_ranking_l2": [*ONE_RANKING, "--allocation=global_ranking_l2"],
    "benchmarks/calibration": [],
    "benchmarks/minilm": [],
    "minilm_speed": ["--steps=0", "--seeds=1"],
    "benchmarks/resnet": [],
    "scale_1e9": [
        *("--parameters=1e9", "--forms=stacked", "--only", "read pass"),
        *(
            "find_masks, uniform",
            "find_masks, one ranking",
            "find_masks, units",
        ),
        *("prune, masks chosen", "keep_masks"),
    ],
    "scale_leaves": [
        *("--parameters=1e9", "--forms=layers", "--only", "read pass"),
        *("find_masks, uniform", "find_masks, one ranking"),
        *("prune, masks chosen", "keep_masks"),
    ],
    "scale_1e8": [
        *("--parameters=1e8", "--forms=stacked", "--only", "read pass"),
        *(
            "find_masks, uniform",
            "find_masks, one ranking",
            "find_masks, units",
        ),
        *("prune, masks chosen", "keep_masks"),
        *("compact, half of the units", "save_sparse", "calibrate"),
        "one_shot, SparseGPT",
    ],
    "benchmarks/cost_model": [],
    "benchmarks/lenet": ["--networks", "LeNet-300-100"],
    "lenet_choice": [
        *("--networks", "LeNet-300-100", "--longer=3", "--choosing=2"),
        *("--seeds=0", "--recipes", "gradual, Erdos-Renyi, activation"),
        "straight-through, Erdos-Renyi",
        "straight-through, Erdos-Renyi, activation",
    ],
    "lenet_longer": [
        *("--networks", "LeNet-300-100", "--longer=3", "--sparsities", ".98"),
        *(".985", ".99", "--recipes"),
        "straight-through, Erdos-Renyi, activation",
    ],
    "lenet_5": [*LENET_5, ".99"],
    "lenet_5_smaller": [*LENET_5, ".995"],
    "lenet_5_choice": [
        *("--networks", "LeNet-5", "--choosing=2", "--seeds=0", "--recipes"),
        *("straight-through, Erdos-Renyi, activation", NO_WINDOWS),
    ],
    "lenet_5_choice_2": [
        *("--networks", "LeNet-5", "--choosing=2", "--seeds=0", "--recipes"),
        "straight-through, one ranking, activation",
        "straight-through, by hand, activation",
    ],
    "benchmarks/medicine": [],
    "benchmarks/peers": [],
    "one_shot_tables": ["--cache=models"],
    "one_shot_served": ["--only", "mlp", "--removed", "served"],
    "benchmarks/selection": [
        *("--sizes", "1e6", "1e7"),
        f"--plot={IMAGES}/selection.png",
    ],
}
SCRIPTS = {  # of another name
    "automatic_networks": "benchmarks/automatic",
    "automatic_lenet": "benchmarks/automatic",
    "automatic_lenet5": "benchmarks/automatic",
    "minilm_speed": "benchmarks/minilm",
    "one_shot_served": "benchmarks/one_shot",
    "repaired_curves": "benchmarks/automatic",
    "lenet_choice": "benchmarks/lenet",
    "lenet_longer": "benchmarks/lenet",
    "lenet_5": "benchmarks/lenet",
    "lenet_5_smaller": "benchmarks/lenet",
    "lenet_5_choice": "benchmarks/lenet",
    "lenet_5_choice_2": "benchmarks/lenet",
    "scale_1e9": "benchmarks/scale",
    "scale_leaves": "benchmarks/scale",
    "scale_1e8": "benchmarks/scale",
    "accuracy_networks": "benchmarks/accuracy",
    "digits_validation": "digits_sparse_training",
    "one_shot_tables": "benchmarks/one_shot",
    "one_ranking": "benchmarks/shrinking",
    "one_ranking_l2": "benchmarks/shrinking",
}


def main(names: list[str]) -> None:
    for name in tqdm(names or EXAMPLES, desc="examples"):
        script = SCRIPTS.get(name, name)
        command = [sys.executable, f"examples/{script}.py"]
        command += {**EXAMPLES, **LONG}.get(name, [])
        printed = subprocess.check_output(command, cwd=ROOT, text=True)
        file = ROOT / "docs" / "outputs" / f"{Path(name).name}.txt"
        file.parent.mkdir(exist_ok=True)
        file.write_text(printed, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
