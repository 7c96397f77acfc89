"""What each method means, written from its paper with dense matrices: slow, obvious, and sharing no code with it.

``ORACLES[name](W, t, variant)`` is the effective weight (out, in) on the ORIGINAL weight W, for a layer's tensors t.
"""

from tests.variants.oracles import orthogonal, others, started, subspace
from tests.variants.oracles.dense import Oracle

ORACLES: dict[str, Oracle] = started.ORACLES | subspace.ORACLES | orthogonal.ORACLES | others.ORACLES
