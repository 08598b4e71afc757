"""Masks: objects that say what a query may see.

They combine with `&` and `|`, with each other and with boolean arrays (True = may attend), and each
can draw itself: `print(causal() & window(3, 0))`. All of them reduce to the normal form of
intervals.py and edges.py, which is all that a kernel sees.
"""

from regard.masks.base import Mask, Normal, as_mask, flatten, rebuild, visibility
from regard.masks.graphs import Graph, edge_count, graph, normal
from regard.masks.grids import blocks, neighborhood
from regard.masks.intervals import EVERYTHING, Extent, Visibility
from regard.masks.positions import causal, prefix, window
from regard.masks.sequences import documents, keys, lengths

__all__ = [
    "EVERYTHING",
    "Extent",
    "Graph",
    "Mask",
    "Normal",
    "Visibility",
    "as_mask",
    "blocks",
    "causal",
    "documents",
    "edge_count",
    "flatten",
    "graph",
    "keys",
    "lengths",
    "neighborhood",
    "normal",
    "prefix",
    "rebuild",
    "visibility",
    "window",
]
