"""The laws of the adapter interface, each a function of a method and a case that raises AssertionError if it is broken.

They know no particular method and nothing of pytest. A law that does not concern a method (an exact start where
``exact_init`` is false) passes. ``test_laws.py`` holds each of them against a method that breaks it.

Shapes follow ``variants.core.interface``: a weight is (out, in), an input (*lead, in).
"""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from variants.core import Variant, adapter_state, attach, detach, layer_states, load_adapter_state, merged
from variants.core.host import Host, hosts
from variants.core.linalg import raised

Layer = Callable[[int, int, bool], nn.Module]


def linear(out: int, in_: int, bias: bool) -> nn.Module:
    return nn.Linear(in_, out, bias=bias)


def conv1d(out: int, in_: int, bias: bool) -> nn.Module:
    """transformers' Conv1D always has a bias; without one it is all zeros."""
    layer = Conv1D(out, in_)
    nn.init.normal_(layer.bias, std=float(bias))
    return layer


@dataclass(frozen=True)
class Case:
    """One layer and the shape of its input."""

    out: int
    in_: int
    bias: bool = True
    lead: tuple[int, ...] = (3,)
    layer: Layer = linear

    def __str__(self) -> str:
        return f"{self.layer.__name__}-{self.out}x{self.in_}-{'bias' if self.bias else 'plain'}-{list(self.lead)}"


CASES = (
    Case(7, 5),
    Case(4, 9, bias=False, lead=(2, 3)),
    Case(6, 6, lead=(0,)),
    Case(5, 8, lead=(2, 3), layer=conv1d),
)


class One(nn.Module):
    """A model with one layer, so that there is a path to name."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def model_of(case: Case, dtype: torch.dtype = torch.float64) -> One:
    torch.manual_seed(case.out * 100 + case.in_)
    return One(case.layer(case.out, case.in_, case.bias)).to(dtype)


def input_of(case: Case, dtype: torch.dtype = torch.float64) -> Tensor:  # shape: (*lead, in)
    return torch.randn(*case.lead, case.in_, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def move(model: nn.Module, scale: float = 0.3, seed: int = 2) -> None:
    """Takes every trainable tensor off its starting point, where most mistakes are invisible (B = 0)."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=rng, dtype=torch.float64)
                parameter.add_((scale * noise).to(parameter.dtype))


def adapted(variant: Variant, case: Case, dtype: torch.dtype = torch.float64, seed: int = 0) -> One:
    model = model_of(case, dtype)
    attach(model, variant, "layer", seed)
    return model


def host_of(model: nn.Module) -> Host:
    (host,) = hosts(model).values()
    return host


def close(got: Tensor, want: Tensor, tol: float, what: str) -> None:
    """Raises AssertionError unless the difference is below tol relative to the largest entry (at least 1)."""
    assert got.shape == want.shape, f"{what}: shape {tuple(got.shape)}, expected {tuple(want.shape)}"
    if want.numel() == 0:
        return
    size = max(float(want.detach().abs().max()), 1.0)
    error = gap(got, want)
    assert error <= tol * size, f"{what}: off by {error:.3g}, allowed {tol * size:.3g}"


def gap(got: Tensor, want: Tensor) -> float:
    """The largest difference of two tensors of one shape."""
    return float((got.detach().double() - want.detach().double()).abs().max())


def same_bits(got: Tensor, want: Tensor) -> bool:
    return got.dtype == want.dtype and got.shape == want.shape and bool(torch.equal(got, want))


# ---- the laws -------------------------------------------------------------------------------------------------------


def starts_at_base(variant: Variant, case: Case) -> None:
    """With ``exact_init`` the adapted model starts as the base model, up to rounding."""
    if not variant.exact_init:
        return
    for dtype, tol in ((torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 2e-2)):
        x = input_of(case, dtype)
        want = model_of(case, dtype)(x)
        close(adapted(variant, case, dtype)(x), want, tol, f"start in {dtype}")


def forward_is_weight(variant: Variant, case: Case) -> None:
    """``forward`` equals the product with ``weight``, in value and in the gradient of x and of every tensor."""
    if not variant.mergeable:
        return
    model = adapted(variant, case)
    move(model)
    host = host_of(model)
    carried = host.carried("default")
    x = input_of(case).requires_grad_()
    y = model(x)
    cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(3), dtype=y.dtype)
    train = dict(carried.named_parameters())
    got = torch.autograd.grad(y, [x, *train.values()], cotangent, allow_unused=True)

    t = {name: tensor.detach().clone() for name, tensor in carried.tensors().items()}
    free = [t[name].requires_grad_() for name in train]
    z = x.detach().clone().requires_grad_()
    dense = F.linear(z, variant.weight(host.dense().detach(), t), host.bias)
    want = torch.autograd.grad(dense, [z, *free], cotangent, allow_unused=True)
    close(y, dense, 1e-10, "value")
    for name, mine, theirs in zip(["x", *train], got, want, strict=True):
        zero = torch.zeros_like(x if name == "x" else train[name])
        close(zero if mine is None else mine, zero if theirs is None else theirs, 1e-10, f"gradient of {name}")


def merge_equals_adapted(variant: Variant, case: Case) -> None:
    """The merged plain model computes what the adapted one computed, in the base's dtype."""
    if not variant.mergeable:
        return
    for dtype, tol in ((torch.float64, 1e-10), (torch.float32, 1e-5), (torch.bfloat16, 5e-2)):
        model = adapted(variant, case, dtype)
        move(model)
        x = input_of(case, dtype)
        want = model(x)
        with merged(model):
            close(model(x), want, tol, f"merged() in {dtype}")
        detach(model, merge=True)
        assert not hosts(model), "detach left an adapted layer"
        assert {p.dtype for p in model.parameters()} == {dtype}, "merging changed the base's dtype"
        close(model(x), want, tol, f"detach(merge=True) in {dtype}")


def detach_restores_bits(variant: Variant, case: Case) -> None:
    """After training steps ``detach(merge=False)`` leaves the very same parameters with the very same bits."""
    for dtype in (torch.bfloat16, torch.float32):
        model = model_of(case, dtype)
        before = {name: (p, p.detach().clone(), p.requires_grad) for name, p in model.named_parameters()}
        attach(model, variant, "layer")
        move(model)
        model(input_of(case, dtype)).float().sum().backward()
        detach(model, merge=False)
        assert list(dict(model.named_parameters())) == list(before), "names of parameters changed"
        assert type(model.layer) is type(model_of(case).layer), "class of the layer changed"
        for name, (parameter, bits, flag) in before.items():
            now = model.get_parameter(name)
            assert now is parameter, f"{name} is another object"
            assert same_bits(now, bits), f"bits of {name} changed in {dtype}"
            assert now.requires_grad == flag, f"requires_grad of {name} changed"


def every_tensor_trains(variant: Variant, case: Case) -> None:
    """Within two steps each trainable tensor has had a gradient other than zero; nothing else ever has one."""
    if 0 in case.lead:
        return
    model = adapted(variant, case)
    parameters = dict(model.named_parameters())
    declared = {name for name, p in parameters.items() if p.requires_grad}
    assert declared == {f"layer.adapter.default.{name}" for name in dict(host_of(model).carried("default")._parameters)}
    reached: set[str] = set()
    for step in range(2):
        x = torch.randn(8, case.in_, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        model(x).square().sum().backward()
        reached |= {name for name, p in parameters.items() if p.grad is not None and bool(p.grad.any())}
        with torch.no_grad():
            for p in parameters.values():
                if p.grad is not None:
                    p.sub_(1e-2 * p.grad)
                    p.grad = None
    assert reached == declared, f"no gradient: {sorted(declared - reached)}; stray: {sorted(reached - declared)}"


def seed_decides_init(variant: Variant, case: Case) -> None:
    """Equal seeds give equal tensors, and no global generator is touched."""
    model = model_of(case)
    torch_state, np_state, py_state = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    attach(model, variant, "layer", 5)
    assert torch.equal(torch.get_rng_state(), torch_state), "torch's global generator was used"
    assert repr(np.random.get_state()) == repr(np_state), "numpy's global generator was used"  # noqa: NPY002
    assert random.getstate() == py_state, "python's global generator was used"
    again = adapter_state(adapted(variant, case, seed=5))
    for name, tensor in adapter_state(model).items():
        assert same_bits(tensor, again[name]), f"{name} differs under the same seed"


def round_trip(variant: Variant, case: Case) -> None:
    """The tensors of ``adapter_state`` alone make a model attached with another seed the same function."""
    first = adapted(variant, case, torch.float32)
    move(first)
    x = input_of(case, torch.float32)
    want = first(x).detach()
    state = {name: tensor.clone() for name, tensor in adapter_state(first).items()}
    second = model_of(case, torch.float32)
    attach(second, copy.deepcopy(variant), "layer", seed=77)
    load_adapter_state(second, state)
    close(second(x), want, 1e-6, "function after loading")


def count_is_closed_form(variant: Variant, case: Case) -> None:
    """``parameter_count`` equals the number of trainable entries."""
    model = adapted(variant, case)
    entries = sum(p.numel() for p in model.parameters() if p.requires_grad)
    said = variant.parameter_count(case.out, case.in_)
    assert entries == said, f"parameter_count says {said}, the tensors have {entries}"


def pair_is_exact(variant: Variant, case: Case) -> None:
    """``as_lora``, where there is one, reproduces the adapted layer on the ORIGINAL weight."""
    W = host_of(adapted(variant, case)).original_dense().detach()
    model = adapted(variant, case)
    move(model)
    host = host_of(model)
    pair = variant.as_lora(W, host.carried("default").tensors())
    if pair is None:
        return
    assert pair.A.shape[1] == case.in_, "A is (rank, in)"
    assert pair.B.shape[0] == case.out, "B is (out, rank)"
    close(W + pair.delta().detach(), host.effective_weight(), 1e-10, "pair on the original weight")


def keeps_dtype(variant: Variant, case: Case) -> None:
    """Output in the base's dtype, adapter tensors and their gradients in float32; the same under autocast."""
    model = adapted(variant, case, torch.bfloat16)
    move(model)
    x = input_of(case, torch.bfloat16)
    y = model(x)
    assert y.dtype == torch.bfloat16, f"bfloat16 in, {y.dtype} out"
    y.float().sum().backward()
    for name, tensor in host_of(model).carried("default").tensors().items():
        assert tensor.dtype == torch.float32, f"{name} is kept in {tensor.dtype}"
    narrow, wide = adapted(variant, case, torch.float32), model_of(case, torch.float32)
    move(narrow)
    x = input_of(case, torch.float32)
    exact = narrow(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = narrow(x)
        assert y.dtype == wide(x).dtype, f"under autocast {y.dtype}, the base gives {wide(x).dtype}"
    close(y, exact, 5e-2, "autocast")


def init_is_pure(variant: Variant, case: Case) -> None:
    """``init`` leaves the weight which it was given, and the random state of no other generator, as they were."""
    W = torch.randn(case.out, case.in_, generator=torch.Generator().manual_seed(4))
    bits = W.clone()
    init = variant.init(W, torch.Generator().manual_seed(0))
    assert same_bits(W, bits), "init wrote into W"
    for name, tensor in {**init.train, **init.frozen}.items():
        assert tensor.dtype == raised(W).dtype, f"{name} is {tensor.dtype} for a {W.dtype} weight"


def groups_cover_all(variant: Variant, case: Case) -> None:
    """``param_groups`` holds every trainable tensor exactly once."""
    model = adapted(variant, case)
    groups = variant.param_groups(layer_states(model), lr=1e-3)
    held = sorted(id(p) for group in groups for p in group["params"])
    assert held == sorted(id(p) for p in model.parameters() if p.requires_grad), "param_groups misses or repeats one"


def resting_changes_nothing(variant: Variant, case: Case) -> None:
    """The step hooks around a step of zero length leave every tensor where it was; the penalty is finite."""
    model = adapted(variant, case)
    states = layer_states(model)
    before = {name: tensor.clone() for name, tensor in states[0].t.items()}
    variant.before_step(states)
    variant.after_step(states, step=0, total=10)
    for name, tensor in before.items():
        close(states[0].t[name], tensor, 1e-12, f"{name} after a step of zero length")
    penalty = variant.penalty(states)
    assert penalty is None or (penalty.ndim == 0 and bool(penalty.isfinite())), "penalty is a finite number"


def base_keys_stay(variant: Variant, case: Case) -> None:
    """The keys of the base stay and mean the base weight; a base checkpoint loads after ``attach``."""
    model = model_of(case)
    stock = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    attach(model, variant, "layer")
    state = model.state_dict()
    assert [key for key in state if ".adapter." not in key] == list(stock), "keys of the base changed"
    assert all(same_bits(state[key], stock[key]) for key in stock), "a key of the base no longer means the base"
    other = {key: tensor + 1 for key, tensor in stock.items()}
    missing, unexpected = model.load_state_dict(other, strict=False)
    assert not unexpected, "the base checkpoint has keys which the adapted model lacks"
    assert all(".adapter." in key for key in missing), "the adapted model has lost keys of the base"
    detach(model, merge=False)
    assert all(same_bits(model.state_dict()[key], other[key]) for key in other), "the checkpoint did not arrive"


def can_be_copied(variant: Variant, case: Case) -> None:
    """pickle and deepcopy give models that compute the same and then live their own lives."""
    model = adapted(variant, case)
    move(model)
    x = input_of(case)
    want = model(x).detach()
    for how, copied in (("deepcopy", copy.deepcopy(model)), ("pickle", _pickled(model))):
        assert same_bits(copied(x).detach(), want), f"{how} computes something else"
        move(copied, seed=9)
        detach(copied, merge=False)
        assert same_bits(model(x).detach(), want), f"the {how} shares state with the original"


def _pickled(model: One) -> One:
    try:
        return pickle.loads(pickle.dumps(model))  # noqa: S301  our own bytes
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise AssertionError(f"cannot be pickled: {error}") from error


def compiles_whole(variant: Variant, case: Case) -> None:
    """torch.compile takes the adapted model in one graph, and the graph computes the same."""
    model = adapted(variant, case)
    move(model)
    x = input_of(case).requires_grad_()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    try:
        y = compiled(x)
    except torch._dynamo.exc.TorchDynamoException as error:
        raise AssertionError(f"the graph breaks: {str(error).splitlines()[0]}") from error
    close(y, model(x), 1e-12, "compiled")


Law = Callable[[Variant, Case], None]
LAWS: tuple[Law, ...] = (
    starts_at_base,
    forward_is_weight,
    merge_equals_adapted,
    detach_restores_bits,
    every_tensor_trains,
    seed_decides_init,
    round_trip,
    count_is_closed_form,
    pair_is_exact,
    keeps_dtype,
    init_is_pure,
    groups_cover_all,
    resting_changes_nothing,
    base_keys_stay,
    can_be_copied,
)
SLOW_LAWS: tuple[Law, ...] = (compiles_whole,)  # seconds rather than milliseconds: one case of each host is enough
