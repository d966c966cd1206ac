"""Structures: in what shape. Units are what is kept or lost together.

Axes are named as in ``jax.nn.initializers``: ``in_axis`` is contracted,
``out_axis`` makes outputs, ``batch_axis`` holds layers that are stacked (a
scan's, say), and what is left is a convolution's window. Each is an int or a
sequence of ints; several are read as one merged axis, in the given order. Of two
axes the first is contracted unless you say otherwise. Of more axes, and of a leaf
called ``weight``, you say which is which, or ``axes=jprune.trace_products(...)`` does.

The score of a unit is pooled from its weights' by ``pooling``: ``"l2"``
(:math:`\\sqrt{\\sum s^2}`, the default), ``"l1"`` (:math:`\\sum |s|`), ``"mean"``
or ``"max"`` (of the scores as they are, which may be negative). Of criteria whose
signs count, ``movement()`` for one, the first two are the norm of the positive
scores less that of the negative ones.
"""

from jprune.structures._base import First as First
from jprune.structures._base import Members as Members
from jprune.structures._base import Structure as Structure
from jprune.structures._block import block as block
from jprune.structures._channel import channel as channel
from jprune.structures._fan_in import fan_in as fan_in
from jprune.structures._group import group as group
from jprune.structures._n_m import n_m as n_m
from jprune.structures._unstructured import unstructured as unstructured

__all__ = [
    "Structure",
    "block",
    "channel",
    "fan_in",
    "group",
    "n_m",
    "unstructured",
]
