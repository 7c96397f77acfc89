"""The checks of the conformance suite: functions of a method and a case that raise AssertionError where it fails.

They know no particular method and nothing of pytest. A check that does not apply to a method passes.
"""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from variants.core.attach import attach, detach
from variants.core.cases import (
    Case,
    One,
    adapted,
    carried_by,
    chain_of,
    close,
    generator,
    input_of,
    model_of,
    move,
    same_bits,
    stats_of,
    train,
)
from variants.core.host import Adapter, Host, hosts
from variants.core.interface import Refused, Variant
from variants.core.linalg import raised
from variants.core.storage import adapter_state, load_adapter_state
from variants.core.switching import layer_states, merged, trainable_parameters


def starts_where_it_says(variant: Variant, case: Case) -> None:
    """The adapted model starts as the base model, or at the closed form which the method gives instead."""
    for dtype, tol in ((torch.float64, 1e-10), (torch.float32, 2e-6), (torch.bfloat16, 3e-2)):
        x, base = input_of(case, dtype), model_of(case, dtype)
        model = adapted(variant, case, dtype)
        if variant.exact_init:
            close(model(x), base(x), variant.tolerance * tol, f"start in {dtype}")
        elif dtype == torch.float64 and variant.mergeable:
            ((host, _),) = carried_by(model)
            want = variant.initial_weight(host.original_dense().detach(), stats_of(variant, case)["layer"])
            if want is not None:
                close(host.effective_weight(), want, variant.tolerance * tol, "start")


def forward_is_weight(variant: Variant, case: Case) -> None:
    """``forward`` equals the product with ``weight``, in value and in the gradient of x and of every tensor."""
    if not variant.mergeable:
        return
    model = adapted(variant, case)
    move(model)
    for host, carried in carried_by(model):
        local = carried.variant
        x = input_of(case).requires_grad_()
        y = model(x)
        cotangent = torch.randn(y.shape, generator=generator(3), dtype=y.dtype)
        trained = dict(carried.named_parameters())
        got = torch.autograd.grad(y, [x, *trained.values()], cotangent, allow_unused=True)

        t = {name: tensor.detach().clone() for name, tensor in carried.tensors().items()}
        free = [t[name].requires_grad_() for name in trained]
        z = x.detach().clone().requires_grad_()
        bias = None if host.bias is None else local.bias(host.bias, t)
        dense = F.linear(z, local.weight(host.dense().detach(), t), bias)
        want = torch.autograd.grad(dense, [z, *free], cotangent, allow_unused=True)
        close(y, dense, 1e-10, "value")
        for name, mine, theirs in zip(["x", *trained], got, want, strict=True):
            zero = torch.zeros_like(x if name == "x" else trained[name])
            close(zero if mine is None else mine, zero if theirs is None else theirs, 1e-9, f"gradient of {name}")


def merge_equals_adapted(variant: Variant, case: Case) -> None:
    """The merged plain model computes what the adapted one computed, in the base's dtype; or merging is refused."""
    for dtype, tol in ((torch.float64, 1e-10), (torch.float32, 2e-5), (torch.bfloat16, 8e-2)):
        model = adapted(variant, case, dtype)
        move(model)
        x = input_of(case, dtype)
        want = model(x)
        if not variant.mergeable:
            _assert_refused(lambda model=model: detach(model, merge=True), "merging")  # type: ignore[misc]
            continue
        with merged(model):
            close(model(x), want, variant.tolerance * tol, f"merged() in {dtype}")
        detach(model, merge=True)
        assert not hosts(model), "detach left an adapted layer"
        assert {p.dtype for p in model.parameters()} == {dtype}, "merging changed the base's dtype"
        close(model(x), want, variant.tolerance * tol, f"detach(merge=True) in {dtype}")


def _assert_refused(act: Callable[[], object], what: str) -> None:
    try:
        act()
    except Refused:
        return
    raise AssertionError(f"{what} went through, though the method declares that it cannot be merged")


def detach_restores_bits(variant: Variant, case: Case) -> None:
    """After training ``detach(merge=False)`` leaves the very same parameters with the very same bits."""
    for dtype in (torch.bfloat16, torch.float32):
        model = model_of(case, dtype)
        before = {name: (p, p.detach().clone(), p.requires_grad) for name, p in model.named_parameters()}
        attach(model, variant, "layer", stats=stats_of(variant, case))
        move(model)
        y = model(input_of(case, dtype)).float().sum()
        if y.requires_grad:
            y.backward()
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
    declared = {f"layer.adapter.default.{name}" for _, carried in carried_by(model) for name in carried._parameters}
    declared |= {path for path in parameters if ".adapter." not in path and variant.trains_base(path)}
    assert {name for name, p in parameters.items() if p.requires_grad} == declared, "other tensors train than declared"
    reached: set[str] = set()
    for step in range(2):
        x = torch.randn(8, case.in_, generator=generator(step), dtype=torch.float64)
        y = model(x).square().sum()
        if y.requires_grad:
            y.backward()
        reached |= {name for name, p in parameters.items() if p.grad is not None and bool(p.grad.any())}
        with torch.no_grad():
            for p in parameters.values():
                if p.grad is not None:
                    p.sub_(1e-2 * p.grad)
                    p.grad = None
    assert reached == declared, f"no gradient: {sorted(declared - reached)}; stray: {sorted(reached - declared)}"


def seed_decides_init(variant: Variant, case: Case) -> None:
    """Equal seeds give equal tensors, and no global generator is touched."""
    model, stats = model_of(case), stats_of(variant, case)
    torch_state, np_state, py_state = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    attach(model, variant, "layer", 5, stats=stats)
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
    second = adapted(copy.deepcopy(variant), case, torch.float32, seed=77)
    load_adapter_state(second, state)
    close(second(x), want, variant.tolerance * 2e-6, "function after loading")


def count_is_closed_form(variant: Variant, case: Case) -> None:
    """``parameter_count`` equals the number of trainable entries."""
    model = adapted(variant, case)
    for _, carried in carried_by(model):
        entries = sum(p.numel() for p in carried.parameters())
        said = carried.variant.parameter_count(case.out, case.in_)
        assert entries == said, f"parameter_count says {said}, the tensors have {entries}"
    larger = _one_larger(variant, case)
    if larger is not None:
        count_is_closed_form(larger, case)


def _one_larger(variant: Variant, case: Case) -> Variant | None:
    """The method in a size beside the usual one, 2, if the layer takes it: a count may be right for one size alone."""
    if not variant.size or getattr(variant, variant.size) != 2:
        return None
    try:
        larger = replace(variant, **{variant.size: 3})
        larger.check(case.out, case.in_)
    except ValueError:
        return None
    return larger


def pair_is_exact(variant: Variant, case: Case) -> None:
    """``as_lora``, where there is one, reproduces the adapted layer on the ORIGINAL weight, after random steps."""
    model = adapted(variant, case)
    for host, _ in carried_by(model):
        W = host.original_dense().detach().clone()
    move(model)
    for host, carried in carried_by(model):
        pair = carried.variant.as_lora(W, carried.tensors())
        if pair is None:
            continue
        assert pair.A.shape[1] == case.in_, "A is (rank, in)"
        assert pair.B.shape[0] == case.out, "B is (out, rank)"
        close(W + pair.delta().detach(), host.effective_weight(), 1e-9, "pair on the original weight")


def keeps_dtype(variant: Variant, case: Case) -> None:
    """Output in the base's dtype, adapter tensors in float32; the same under autocast, and close to the exact value."""
    model = adapted(variant, case, torch.bfloat16)
    move(model)
    x = input_of(case, torch.bfloat16)
    y = model(x)
    assert y.dtype == torch.bfloat16, f"bfloat16 in, {y.dtype} out"
    if y.requires_grad:
        y.float().sum().backward()
    for _, carried in carried_by(model):
        for name, tensor in carried.tensors().items():
            kept = tensor.dtype == torch.float32 or not tensor.is_floating_point()  # indices have no precision
            assert kept, f"{name} is kept in {tensor.dtype}"
    narrow, wide = adapted(variant, case, torch.float32), model_of(case, torch.float32)
    move(narrow)
    x = input_of(case, torch.float32)
    exact = narrow(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = narrow(x)
        assert y.dtype == wide(x).dtype, f"under autocast {y.dtype}, the base gives {wide(x).dtype}"
    close(y, exact, variant.tolerance * 5e-2, "autocast")


def init_is_pure(variant: Variant, case: Case) -> None:
    """``init`` leaves the weight and the statistics which it was given as they were, and answers in their dtype."""
    if variant.trains != "layers":
        return
    W = torch.randn(case.out, case.in_, generator=generator(4))
    stats = {name: tensor.float() for name, tensor in stats_of(variant, case)["layer"].items()}
    bits, known = W.clone(), {name: tensor.clone() for name, tensor in stats.items()}
    init = variant.init(W, generator(0), stats)
    assert same_bits(W, bits), "init wrote into W"
    assert all(same_bits(stats[name], known[name]) for name in stats), "init wrote into the statistics"
    for name, tensor in {**init.train, **init.frozen}.items():
        alike = tensor.dtype == raised(W).dtype or not tensor.is_floating_point()
        assert alike, f"{name} is {tensor.dtype} for a {W.dtype} weight"


def groups_cover_all(variant: Variant, case: Case) -> None:
    """``param_groups`` holds every trainable tensor of the layers exactly once, and its rates follow the given one."""
    model = adapted(variant, case)
    groups, doubled = (variant.param_groups(layer_states(model), lr=lr) for lr in (1e-3, 2e-3))
    held = sorted(id(p) for group in groups for p in group["params"])
    mine = [p for _, carried in carried_by(model) for p in carried.parameters()]
    assert held == sorted(map(id, mine)), "param_groups misses or repeats one"
    rates = [(group.get("lr"), twice.get("lr")) for group, twice in zip(groups, doubled, strict=True)]
    follow = all(a is not None and b is not None and abs(b - 2 * a) <= 1e-12 for a, b in rates)
    assert follow, "the rates of param_groups do not follow lr"


def resting_changes_nothing(variant: Variant, case: Case) -> None:
    """The hooks around a step of zero length, without gradients, leave every tensor where it was."""
    model = adapted(variant, case)
    states = layer_states(model)
    before = [{name: tensor.clone() for name, tensor in state.t.items()} for state in states]
    variant.before_step(states)
    variant.after_step(states, step=0, total=10)
    for state, kept in zip(states, before, strict=True):
        for name, tensor in kept.items():
            close(state.t[name], tensor, 1e-12, f"{name} after a step of zero length")


def penalty_is_zero_on_the_constraint(variant: Variant, case: Case) -> None:
    """The penalty is finite and differentiable, and zero when the factors are semi-orthogonal and all else is zero."""
    model = adapted(variant, case)
    states = layer_states(model)
    if variant.penalty(states) is None:
        return
    trained = {name: p for _, carried in carried_by(model) for name, p in carried.named_parameters()}

    def penalty() -> Tensor:
        found = variant.penalty(states)
        assert found is not None, "there is a penalty at the start only"
        assert found.ndim == 0, "the penalty is a single number"
        assert bool(found.isfinite()), "the penalty is a finite number"
        gradients = torch.autograd.grad(found, list(trained.values()), allow_unused=True)
        assert all(g is None or bool(g.isfinite().all()) for g in gradients), "the penalty's gradient is not finite"
        return found.detach()

    with torch.no_grad():
        for name, p in trained.items():
            # Axis-aligned factors are orthonormal without rounding: there a norm that is not squared has a kink.
            p.copy_(torch.eye(*p.shape) if name in variant.orthonormal else torch.zeros_like(p))
    least = float(penalty())
    assert abs(least) <= 1e-6, f"the penalty is {least:.3g} on the constraint, not 0"
    move(model)
    assert float(penalty()) > least + 1e-4, "the penalty does not grow off the constraint"


def promises_hold_in_training(variant: Variant, case: Case) -> None:
    """After 200 optimiser steps with weight decay everything that the method promises still holds on every layer; so it
    does at the start."""
    model = chain_of(variant, case)
    for steps in (0, 200):
        if steps and not any(_defects(host, carried) for host, carried in carried_by(model)):
            return
        train(model, variant, case, steps)
        for host, carried in carried_by(model):
            for what, defect in _defects(host, carried).items():
                off = float(defect.detach().max())
                assert off <= variant.tolerance * 2e-5, f"{what}: off by {off:.3g} after {steps} steps"


def _defects(host: Host, carried: Adapter) -> dict[str, Tensor]:
    return carried.variant.defects(host.original_dense().detach(), carried.tensors())


def training_trains(variant: Variant, case: Case) -> None:
    """In 30 steps with the method's hooks the loss falls; frozen tensors, the base and the global generators stay."""
    model = chain_of(variant, case)
    trained = trainable_parameters(model)
    others = {name: t for name, t in [*model.named_parameters(), *model.named_buffers()] if name not in trained}
    before = {name: tensor.detach().clone() for name, tensor in others.items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20110)  # a state which a hook that seeds by itself would hardly choose
        torch_state = torch.get_rng_state()
        losses = train(model, variant, case, 30)
        assert torch.equal(torch.get_rng_state(), torch_state), "the hooks used torch's global generator"
    for name, tensor in others.items():
        assert same_bits(tensor, before[name]), f"{name} is frozen and has changed"
    assert not trained or min(losses[20:]) < losses[0], f"the loss went from {losses[0]:.4g} to {losses[-1]:.4g}"


def decay_leads_to_the_base(variant: Variant, case: Case) -> None:
    """Weight decay without a gradient leaves a model that starts at the base where it is."""
    if not variant.exact_init or not variant.mergeable or variant.trains != "layers":
        return
    model = adapted(variant, case)
    ((host, _),) = carried_by(model)
    groups = [group for group in variant.param_groups(layer_states(model), lr=1e-2) if group["params"]]
    optimiser = torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.1)
    for parameter in trainable_parameters(model).values():
        parameter.grad = torch.zeros_like(parameter)
    for _ in range(20):
        optimiser.step()
    close(host.effective_weight(), host.original_dense(), variant.tolerance * 1e-8, "after decay alone")


def rows_do_not_mix(variant: Variant, case: Case) -> None:
    """A row's output depends on that row alone, whatever else is in the batch."""
    model = adapted(variant, case)
    move(model)
    x = input_of(case)
    rows = x.reshape(-1, case.in_)
    together = model(x).reshape(-1, case.out)
    for row, got in zip(rows, together, strict=True):
        close(model(row), got, 1e-10, "a row by itself")


def base_keys_stay(variant: Variant, case: Case) -> None:
    """The keys of the base stay and mean the base weight; a base checkpoint loads after ``attach``."""
    model = model_of(case)
    stock = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    attach(model, variant, "layer", stats=stats_of(variant, case))
    state = model.state_dict()
    assert [key for key in state if ".adapter." not in key] == list(stock), "keys of the base changed"
    assert all(same_bits(state[key], stock[key]) for key in stock), "a key of the base no longer means the base"
    other = {key: tensor + 1 for key, tensor in stock.items()}
    missing, unexpected = model.load_state_dict(other, strict=False)
    assert not unexpected, "the base checkpoint has keys which the adapted model lacks"
    assert all(".adapter." in key for key in missing), "the adapted model has lost keys of the base"
    if variant.trains == "base":
        return  # what was loaded is what trains: detach takes it back
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


Check = Callable[[Variant, Case], None]
CHECKS: tuple[Check, ...] = (
    starts_where_it_says,
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
    penalty_is_zero_on_the_constraint,
    base_keys_stay,
    can_be_copied,
    decay_leads_to_the_base,
    rows_do_not_mix,
    training_trains,
)
SLOW_CHECKS: tuple[Check, ...] = (promises_hold_in_training, compiles_whole)  # once for each setting of a method
