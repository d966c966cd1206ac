"""The order of the tutorials."""

ORDER = [
    "prune_while_training.py",
    "prune_a_trained_model.py",
    "automatic.py",
    "shrink_while_training.py",
    "ship_it.py",
]


class Order:
    """How sphinx-gallery asks for it: by the name of a file."""

    def __init__(self, src_dir: str) -> None:
        del src_dir

    def __call__(self, filename: str) -> int:
        return ORDER.index(filename)
