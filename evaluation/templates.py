"""A method to start one's own from: working code with comments, and its test."""

from __future__ import annotations

import re
from pathlib import Path

import variants
from evaluation.spec import Unusable
from variants.core import names

VARIANT = '''"""{title}: what it does, in one line (Authors, year, where)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from variants.core import FrozenProduct, Init, LoRAPair, LowRank, Tensors, project, register


@register("{name}")
@dataclass(frozen=True, kw_only=True)
class {title}(LowRank):  # brings rank, alpha and scale = alpha / rank; extend Variant instead if there is no rank
    """``W + s B diag(g) A``: a gate for each rank."""

    paper = "arXiv ..."

    def init(self, W: Tensor, rng: torch.Generator, stats: Tensors | None = None) -> Init:
        """The tensors of one layer, in W's dtype. All randomness comes from rng."""
        out, in_ = W.shape
        A = torch.randn(self.rank, in_, generator=rng, dtype=W.dtype) / in_**0.5
        g = torch.ones(self.rank, dtype=W.dtype)
        B = torch.zeros(out, self.rank, dtype=W.dtype)  # zero, so that training starts at the base model
        return Init(train={{"A": A, "g": g, "B": B}})  # tensors that do not train go into frozen={{...}}

    def weight(self, W: Tensor, t: Tensors) -> Tensor:
        """The definition: the effective weight (out, in). Merging and the default product follow from it."""
        return W + self.scale * (t["B"] * t["g"]) @ t["A"]

    def parameter_count(self, out: int, in_: int) -> int:
        return self.rank * (out + in_ + 1)

    def forward(self, x: Tensor, linear: FrozenProduct, W: Tensor, t: Tensors) -> Tensor:
        """Optional: the same product, faster. linear(x) is the frozen product, possibly quantised; no bias."""
        return linear(x) + project(self.scale * t["g"].to(x.dtype) * project(x, t["A"]), t["B"])

    def as_lora(self, W: Tensor, t: Tensors) -> LoRAPair:
        """Optional: the exact low-rank pair on the original W, for export."""
        return LoRAPair(t["A"], self.scale * t["B"] * t["g"])
'''

TEST = '''"""{name} against the conformance suite; add what its paper promises beyond that."""

import pytest
from {name} import {title}

from variants.core.conformance import identifier, matrix


@pytest.mark.parametrize(("check", "variant", "case"), matrix({title}), ids=identifier)
def test_conforms(check, variant, case):
    check(variant, case)
'''


def write_variant(name: str, folder: Path) -> list[Path]:
    """Writes ``NAME.py`` and ``test_NAME.py``; their paths. Among the shipped methods no test is written: those are all
    held against the conformance suite already, and a test file there would be imported with them.

    Raises:
        Unusable: a name that is taken or is none, or files that are there already.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise Unusable(f"{name!r} cannot name a method: write lower-case letters, digits and _, such as my_lora")
    if name in names():
        raise Unusable(f"there is a method called {name!r} already: choose another name")
    title = "".join(part.capitalize() for part in name.split("_"))
    files = {folder / f"{name}.py": VARIANT}
    if folder.resolve() != Path(variants.__file__).parent:
        files[folder / f"test_{name}.py"] = TEST
    for path in files:
        if path.exists():
            raise Unusable(f"{path} exists already: nothing was written")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in files.items():
            path.write_text(text.format(name=name, title=title), encoding="utf-8")
    except OSError as error:
        raise Unusable(f"cannot write into {folder}: {error.strerror or error}") from error
    return list(files)
