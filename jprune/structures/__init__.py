"""Structures say which weights form a unit: units are kept or removed whole.

Axes are named as in ``jax.nn.initializers``: ``in_axis`` is contracted,
``out_axis`` makes outputs, ``batch_axis`` stacks layers (as a scan does), and any
other axis is the window of a convolution. Each is an int or a sequence of ints;
several are read as one merged axis, in the given order. If a leaf has two axes, the
first is contracted unless you say otherwise. If it has more, or is called
``weight``, pass the axes, or ``axes=jprune.trace_products(...)``, which finds them.

``pooling`` makes the score of a unit from the scores of its weights: ``"l2"``
(:math:`\\sqrt{\\sum s^2}`, the default), ``"l1"`` (:math:`\\sum |s|`), ``"mean"``
or ``"max"`` (of the scores as they are, which may be negative). For criteria with
signed scores, such as ``movement()``, the first two are the norm of the positive
scores minus the norm of the negative ones.
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
