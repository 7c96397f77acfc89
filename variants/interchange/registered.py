"""The formats of PEFT's which are written and read."""

from __future__ import annotations

from variants.interchange.contents import Format
from variants.interchange.low_rank import AdaLoRA, LoRA, VeRA
from variants.interchange.multiplied import BOFT, HRA, IA3, OFT

FORMATS: tuple[Format, ...] = (LoRA(), AdaLoRA(), VeRA(), OFT(), BOFT(), HRA(), IA3())
