"""Small models and methods for the tests of the host."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2Model

import variants  # noqa: F401  registers the methods
from variants.core import Init, LoRAPair, Tensors, Variant, activate, create, method, project, rows
from variants.core.cases import Layer, close, conv1d, linear
from variants.core.host import Host, hosts
from variants.core.interface import FrozenProduct
from variants.lora import LoRA
from variants.pissa import PiSSA

WIDTH = 6


class Block(nn.Module):
    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.up = layer(10, WIDTH, True)
        self.down = layer(WIDTH, 10, True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(x)))


class Net(nn.Module):
    """Blocks and a head without bias; not every parameter requires a gradient."""

    def __init__(self, layer: Layer = linear, blocks: int = 2) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(layer) for _ in range(blocks)])
        self.head = linear(3, WIDTH, False)
        self.blocks[0].up.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def net(layer: Layer = linear, dtype: torch.dtype = torch.float64, blocks: int = 2) -> Net:
    torch.manual_seed(3)
    return Net(layer, blocks).to(dtype)


def batch(*lead: int, dtype: torch.dtype = torch.float64) -> Tensor:  # shape: (*lead, WIDTH)
    rng = torch.Generator().manual_seed(4)
    return torch.randn(*lead, WIDTH, generator=rng, dtype=torch.float64).to(dtype)


def dense_weights(model: nn.Module) -> dict[str, Tensor]:
    """The (out, in) weight of every layer of a plain Net, cloned."""
    found = {path: m for path, m in model.named_modules() if path.rpartition(".")[2] in {"up", "down", "head"}}
    return {
        path: (m.weight.T if hasattr(m, "nf") else m.weight).detach().clone()  # Conv1D keeps (in, out)
        for path, m in found.items()
    }


def fingerprint(model: nn.Module) -> tuple[object, ...]:
    """Everything about a model that an operation which was refused, or taken back, may not change."""
    modules = [(path, id(m), type(m), sorted(m.__dict__), m.training) for path, m in model.named_modules()]
    tensors = [
        (name, id(p), p.requires_grad, p.dtype, p.detach().flatten().view(torch.uint8).tolist())
        for name, p in [*model.named_parameters(), *model.named_buffers()]
    ]
    carried = [(path, list(h.adapter), dict(h.switch.active), h.switch.merged) for path, h in hosts(model).items()]
    return modules, tensors, list(model.state_dict()), carried


@dataclass(frozen=True, kw_only=True)
class Gated(LoRA):
    """Depends on the input, so that it has no effective weight: the pair is scaled by the size of x."""

    mergeable: ClassVar[bool] = False

    def weight(self, W: Tensor, t: Tensors) -> Tensor:
        raise NotImplementedError

    def as_lora(self, W: Tensor, t: Tensors) -> LoRAPair | None:
        return None

    def forward(self, x: Tensor, linear: FrozenProduct, W: Tensor, t: Tensors) -> Tensor:
        gate = torch.sigmoid(x.square().mean(-1, keepdim=True))
        return linear(x) + gate * project(project(x, t["A"]), t["B"])


@dataclass(frozen=True, kw_only=True)
class Mirrored(Variant):
    """``W + W (H(u) - H(u0))`` for Householder reflections H: multiplicative, so that the frozen product is asked for
    inputs other than x."""

    def init(self, W: Tensor, rng: torch.Generator, stats: Tensors | None = None) -> Init:
        u = torch.randn(W.shape[1], generator=rng, dtype=W.dtype)
        return Init(train={"u": u}, frozen={"u0": u})

    def weight(self, W: Tensor, t: Tensors) -> Tensor:
        turned, start = (torch.outer(u, u) / u.dot(u) for u in (t["u"], t["u0"]))
        return W - 2 * W @ (turned - start)

    def forward(self, x: Tensor, linear: FrozenProduct, W: Tensor, t: Tensors) -> Tensor:
        turned, start = (torch.outer(u, u).to(x.dtype) / u.dot(u).to(x.dtype) for u in (t["u"], t["u0"]))
        return linear(x) - 2 * linear(x @ (turned - start))

    def parameter_count(self, out: int, in_: int) -> int:
        return in_


@dataclass(frozen=True, kw_only=True)
class Informed(LoRA):
    """Starts A from the gradient of the weight."""

    needs: ClassVar[frozenset[str]] = frozenset({"gradient"})

    def init(self, W: Tensor, rng: torch.Generator, stats: Tensors | None = None) -> Init:
        assert stats is not None
        start = super().init(W, rng)
        return replace(start, train={**start.train, "A": stats["gradient"][: self.rank].to(W.dtype)})


@dataclass(frozen=True, kw_only=True)
class Rebased(PiSSA):
    """Replaces the base and has no low-rank form to go on with when it no longer can."""

    def as_lora(self, W: Tensor, t: Tensors) -> LoRAPair | None:
        return None


@dataclass(frozen=True, kw_only=True)
class Scribbler(LoRA):
    """Uses the weight it is given as scratch paper."""

    def init(self, W: Tensor, rng: torch.Generator, stats: Tensors | None = None) -> Init:
        start = super().init(W, rng, stats)
        W.zero_()
        return start


@dataclass(frozen=True, kw_only=True)
class BiasToo(LoRA):
    """Puts tensors on layers and trains the base's biases in place."""

    def trains_base(self, path: str) -> bool:
        return path.endswith("bias")


@dataclass(frozen=True, kw_only=True)
class RandomStart(PiSSA):
    """Replaces the base by one that depends on the seed: W - s B0 A0 for random factors."""

    def init(self, W: Tensor, rng: torch.Generator, stats: Tensors | None = None) -> Init:
        out, in_ = W.shape
        A = torch.randn(self.rank, in_, generator=rng, dtype=W.dtype)
        B = torch.randn(out, self.rank, generator=rng, dtype=W.dtype)
        return Init(train={"A": A, "B": B}, frozen={"A0": A, "B0": B}, base=W - self.scale * B @ A)


LAYERS = [linear, conv1d]
# One method of every kind of mechanism that a host has to do with; the conformance suite tries all methods.
KINDS = ("lora", "dora", "pissa", "lora_xs", "stiefel", "svf", "hra", "ia3", "vera", "full", "bitfit", "probe")
EVERY = [create(name, {method(name).size: 2} if method(name).size else {}) for name in KINDS]
LAYERWISE = [variant for variant in EVERY if variant.trains == "layers"]
DTYPES = [torch.float32, torch.bfloat16]


def host_of(model: nn.Module) -> Host:
    """The one adapted layer of a model."""
    (host,) = hosts(model).values()
    return host


def by_name(variant: Variant) -> str:
    return variant.name


def gpt2() -> GPT2Model:
    torch.manual_seed(3)
    config = GPT2Config(vocab_size=13, n_positions=8, n_embd=8, n_layer=2, n_head=2)
    return GPT2Model(config).eval().double()


def train(model: nn.Module, x: Tensor, steps: int = 3) -> None:
    optim = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        optim.zero_grad()
        model(x).float().square().mean().backward()
        optim.step()


def assert_rows_go_alone(model: nn.ModuleDict, names: list[str | None], tol: float) -> None:
    """Each row of a mixed batch comes out as it does by itself through its own adapter."""
    for lead in ((), (2,), (0,)):
        x = batch(len(names), *lead)
        with rows(model, names):
            mixed = model["layer"](x)
        for i, name in enumerate(names):
            activate(model, name)
            close(mixed[i], model["layer"](x[i : i + 1])[0], tol, f"row {i} through {name}")
