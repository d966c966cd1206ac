"""Saves models to files that run without their source, and to sparse files."""

from jprune.export.bundle import Bundle as Bundle
from jprune.export.bundle import load as load
from jprune.export.bundle import save as save
from jprune.export.litert import to_litert as to_litert
from jprune.export.onnx import to_onnx as to_onnx
from jprune.export.sparse import Sparse as Sparse
from jprune.export.sparse import load_sparse as load_sparse
from jprune.export.sparse import save_sparse as save_sparse
from jprune.export.trees import unflat as unflat

__all__ = [
    "Bundle",
    "Sparse",
    "load",
    "load_sparse",
    "save",
    "save_sparse",
    "to_litert",
    "to_onnx",
    "unflat",
]
