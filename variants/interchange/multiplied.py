"""PEFT's formats of multiplicative updates: OFT, BOFT, HRA and (IA)^3."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from variants.core.interface import Init, Refused
from variants.core.linalg import skew_from
from variants.interchange.contents import Carried, Contents, Format, Found, Options, Restored, Unfit, made, only
from variants.interchange.targets import one_of


def _check_layout(layers: Mapping[str, Carried]) -> None:
    if any(layer.transposed for layer in layers.values()):
        raise Unfit("PEFT does not turn the inputs of layers which store their weight as (in, out)")


class OFT(Format):
    """``W R^T`` with blocks from the entries above the diagonals of Q, skew-symmetric: by the Cayley map
    ``(I - Q)(I + Q)^(-1)``, or by a series for ``(I + Q)(I - Q)^(-1)``, the opposite direction. Ours is the latter."""

    peft_type = "OFT"
    methods = frozenset({"oft"})
    names = ("oft_R.weight",)

    def write(self, layers: Mapping[str, Carried]) -> Contents:
        hyper: dict[str, Any] = {path: layer.variant for path, layer in layers.items()}
        _check_layout(layers)
        neumann = only((v.inverse for v in hyper.values()), "inverse") == "neumann"
        terms = only((v.terms for v in hyper.values()), "terms") if neumann else 5
        sizes = {v.block for v in hyper.values()}
        numbers = {layer.W.shape[1] // hyper[path].block for path, layer in layers.items()}
        if len(sizes) > 1 and len(numbers) > 1:
            raise Unfit(
                "the layers differ in the size of the blocks and in their number, and the format has one of them"
            )
        r, block = (0, sizes.pop()) if len(sizes) == 1 else (numbers.pop(), 0)
        config = {"r": r, "oft_block_size": block, "use_cayley_neumann": neumann, "num_cayley_neumann_terms": terms}
        sign = 1 if neumann else -1
        return Contents(config, {path: {self.names[0]: sign * layer.t["K"]} for path, layer in layers.items()})

    def read(self, options: Options, layers: list[Found], shared: dict[str, Tensor]) -> Restored:
        neumann, terms = options.flag("use_cayley_neumann", True), options.count("num_cayley_neumann_terms", 5)
        shares, r, size = options.flag("block_share"), options.count("r", 0), options.count("oft_block_size", 32)
        if options.flag("coft"):
            raise Refused("coft=True changes the rotations while they are used: there is no such method here")
        if neumann and _version(options.get("peft_version")) < (0, 18):
            old = "before PEFT 0.18 the series was another one, and the file names no later version"
            raise Refused(f"use_cayley_neumann: {old}: merge it with the version that made it")
        if neumann and terms < 3:
            raise Refused(f"a series of {terms} terms is no rotation: there is no such method here")
        # PEFT's three terms are four. The exact map needs no terms.
        series = {"inverse": "neumann", "terms": max(terms, 4)} if neumann else {"inverse": "exact"}
        restored = Restored({})
        for layer in layers:
            width = layer.W.shape[1]
            block = _block(layer, size if r == 0 else 0 if width % r else width // r)
            count = width // block
            Q = layer.take(self.names[0], 1 if shares else count, block * (block - 1) // 2)
            K = (Q if neumann else -Q).expand(count, -1)
            restored.layers[layer.path] = made("oft", layer.path, block=block, **series), Init(train={"K": K})
        if shares:
            restored.notes.append("block_share: the blocks of a layer start equal, and would be trained apart")
        return restored


def _version(version: Any) -> tuple[int, int]:
    """Major and minor number; (0, 0) where there is none."""
    found = re.match(r"(\d{1,9})\.(\d{1,9})", version) if isinstance(version, str) else None
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _block(layer: Found, asked: int) -> int:
    """The size of the blocks: what the settings ask for, unless that does not divide the width, where PEFT takes
    another one, which the number of entries tells."""
    width = layer.W.shape[1]
    if asked > 1 and width % asked == 0:
        return asked
    Q = layer.peek(OFT.names[0])
    block = (1 + math.isqrt(1 + 8 * Q.shape[-1])) // 2 if Q.ndim else 1
    if block < 2 or width % block:
        raise Refused(
            f"{OFT.names[0]} of {layer.path} has shape {tuple(Q.shape)}, which fits no blocks of width {width}"
        )
    return block


class BOFT(Format):
    """``diag(s) W R^T`` with blocks ``(I - K)(I + K)^(-1)``, K = (X - X^T) / 2 of any X (1, k, b, b); s (out, 1)."""

    peft_type = "BOFT"
    methods = frozenset({"boft"})
    names = ("boft_R", "boft_s")

    def write(self, layers: Mapping[str, Carried]) -> Contents:
        hyper: list[Any] = [layer.variant for layer in layers.values()]
        if any(v.butterflies > 1 for v in hyper):
            raise Unfit("several butterflies: PEFT silently uses one where its CUDA extension is not built")
        if any(v.inverse == "neumann" for v in hyper):
            raise Unfit("inverse='neumann': PEFT's BOFT has the exact Cayley map only")
        _check_layout(layers)
        block = only((v.block for v in hyper), "block")
        config = {"boft_block_size": block, "boft_block_num": 0, "boft_n_butterfly_factor": 1}
        tensors = {
            path: {"boft_R": -skew_from(layer.t["K"], block)[None], "boft_s": layer.t["s"][:, None]}
            for path, layer in layers.items()
        }
        return Contents(config, tensors)

    def read(self, options: Options, layers: list[Found], shared: dict[str, Tensor]) -> Restored:
        for key in ("boft_block_size", "boft_block_num", "boft_n_butterfly_factor"):
            options.count(key, 0)
        restored = Restored({})
        for layer in layers:
            (out, width), X = layer.W.shape, layer.peek("boft_R")
            if X.ndim != 4 or X.shape[0] != 1:
                what = f"boft_R of {layer.path} has shape {tuple(X.shape)}"
                raise Refused(f"{what}: read is one factor of blocks (1, blocks, size, size), not several butterflies")
            block = X.shape[-1]
            X = layer.take("boft_R", 1, width // max(block, 1), block, block)[0]
            rows, columns = torch.triu_indices(block, block, 1)
            K = (X.mT - X)[:, rows, columns] / 2
            s = layer.take("boft_s", out, 1)[:, 0]
            variant = made("boft", layer.path, block=block, butterflies=1)
            restored.layers[layer.path] = variant, Init(train={"K": K, "s": s})
        return restored


class HRA(Format):
    """``W prod_i (I - 2 u_i u_i^T)`` for the columns of u (in, r), made unit or, with ``apply_GS``, orthonormal."""

    peft_type = "HRA"
    methods = frozenset({"hra"})
    names = ("hra_u",)

    def write(self, layers: Mapping[str, Carried]) -> Contents:
        _check_layout(layers)
        hyper: dict[str, Any] = {path: layer.variant for path, layer in layers.items()}
        r, start = only(((v.rank, v.gram_schmidt) for v in hyper.values()), "rank or gram_schmidt")
        # With the frozen reflections of our start behind them, PEFT's plain chain is the same product.
        u = {path: v.chain(layers[path].t)[0] if start else layers[path].t["u"] for path, v in hyper.items()}
        r = 2 * r if start else r
        tensors = {path: {self.names[0]: columns} for path, columns in u.items()}
        return Contents({"r": r, "apply_GS": False}, tensors, ranks=dict.fromkeys(layers, r))

    def read(self, options: Options, layers: list[Found], shared: dict[str, Tensor]) -> Restored:
        r, orthonormal = options.count("r", 8), options.flag("apply_GS")
        restored = Restored({})
        for layer in layers:
            u = layer.take(self.names[0], layer.W.shape[1], r)
            u = torch.linalg.qr(u.to(layer.W.dtype)).Q if orthonormal else u
            restored.layers[layer.path] = made("hra", layer.path, rank=r), Init(train={"u": u})
        if orthonormal:
            restored.notes.append("apply_GS: the columns of u are orthonormal now, and training would not keep them so")
        return restored


class IA3(Format):
    """``diag(l) (W x + b)`` with l (out, 1), on feed-forward modules ``W diag(l) x + b`` with l (1, in)."""

    peft_type = "IA3"
    methods = frozenset({"ia3"})
    names = ("ia3_l",)

    def write(self, layers: Mapping[str, Carried]) -> Contents:
        hyper: dict[str, Any] = {path: layer.variant for path, layer in layers.items()}
        inner = [path for path, v in hyper.items() if v.side == "input"]
        tensors = {
            path: {self.names[0]: c.t["l"][None] if path in inner else c.t["l"][:, None]} for path, c in layers.items()
        }
        # A regular expression: PEFT takes a listed path for the end of a path, not even after a dot.
        return Contents({"feedforward_modules": one_of(inner) if inner else []}, tensors)

    def read(self, options: Options, layers: list[Found], shared: dict[str, Tensor]) -> Restored:
        options.get("feedforward_modules")  # the shapes say it
        restored = Restored({})
        for layer in layers:
            out, in_ = layer.W.shape
            inner = tuple(layer.peek(self.names[0]).shape) == (1, in_) != (out, 1)
            l = layer.take(self.names[0], *((1, in_) if inner else (out, 1))).flatten()  # noqa: E741  its name in the paper
            variant = made("ia3", layer.path, side="input" if inner else "output")
            restored.layers[layer.path] = variant, Init(train={"l": l})
        return restored
