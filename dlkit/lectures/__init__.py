"""The lectures' experiments as scripts: each claim is measured, drawn, and said to hold or not.

>>> from dlkit import lectures
>>> lectures.names()[:2]
['backprop', 'activations']
"""

from dlkit.lectures._gallery import gallery
from dlkit.lectures._lab import COLOURS, Claim, Lab, spread
from dlkit.lectures._run import load, names, read, run
from dlkit.lectures._surface import Along, concave, plane

__all__ = ["names", "run", "load", "read", "gallery", "Lab", "Claim", "spread", "plane", "concave", "Along", "COLOURS"]
