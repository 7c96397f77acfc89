"""How a method gets onto a model: the class of a layer is swapped in place, and swapped back.

A *host* is a layer class that can carry adapters: it offers the frozen product and the dense weight, in the (out, in)
orientation, whatever the layer stores. Hosts and methods know nothing of each other, so they add up instead of
multiplying. The swap keeps every key of the base ``state_dict``, keeps ``isinstance`` true, and can be pickled, copied
and compiled (docs/decisions/001).

Several adapters live on one base under names. Each contributes ``weight_i(W) - W``; contributions are scaled, added and
chosen per row without touching a base tensor. A method that replaces the base (PiSSA) does so only while it is alone
and undiluted; otherwise the host uses its exact low-rank pair on the untouched base.
"""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from variants.core.interface import Init, LayerState, LoRAPair, Refused, Tensors, Variant, project
from variants.core.linalg import full_precision, raised

_RECORD = "_svdbench"  # where the root module keeps its Attachment


@dataclass
class Switch:
    """What all hosts of one model share; changing it switches every layer at once."""

    active: dict[str, float] = field(default_factory=dict)  # adapter name -> weight of its contribution
    rows: tuple[str | None, ...] | None = None  # adapter name for each row of the batch
    merged: bool = False


@dataclass
class Attachment:
    """What must be put back at detach."""

    switch: Switch
    requires_grad: dict[str, bool]
    variants: dict[str, Variant] = field(default_factory=dict)
    trained_base: dict[str, Tensor] = field(default_factory=dict)  # path -> value before training


class Adapter(nn.Module):
    """The tensors of one adapter on one layer, and how they enter the product."""

    def __init__(self, variant: Variant, init: Init, dropout: float, device: torch.device) -> None:
        super().__init__()
        self.variant = variant
        self.dropout = dropout
        self.rebased = False  # True: the layer's weight is init.base, and weight() is meant on it
        self.pair_form = False  # True: used as the exact low-rank pair on the original weight
        for name, tensor in init.train.items():
            self.register_parameter(name, nn.Parameter(_own(tensor, device)))
        for name, tensor in init.frozen.items():
            self.register_buffer(name, _own(tensor, device))

    def tensors(self) -> dict[str, Tensor]:
        both: dict[str, Tensor | None] = {**self._parameters, **self._buffers}
        return {name: tensor for name, tensor in both.items() if tensor is not None}

    def product(self, x: Tensor, host: Host) -> Tensor:
        """The whole adapted product without bias, for the adapter alone on its layer."""
        if self.pair_form:
            return host.frozen(x) + self._pair_product(x, host)
        return self.variant.forward(x, host.frozen, host.dense(), self.tensors())

    def contribution(self, x: Tensor, y: Tensor, host: Host) -> Tensor:
        """What the adapter adds to ``y``, the product of ``x`` with the original weight. Sees dropped-out input."""
        seen = F.dropout(x, self.dropout, training=True) if self.training and self.dropout else x
        if self.pair_form:
            return self._pair_product(seen, host)
        frozen = y if seen is x else host.original_product(seen)
        if self.rebased:
            return self.product(seen, host) - frozen

        def known(z: Tensor) -> Tensor:  # one frozen product, not two
            return frozen if z is seen else host.frozen(z)

        return self.variant.forward(seen, known, host.dense(), self.tensors()) - frozen

    def effective(self, host: Host) -> Tensor:  # shape: (out, in)
        """The effective weight, in full precision."""
        W = raised(host.dense())
        if not self.variant.mergeable:
            raise Refused(f"{self.variant.name} depends on the input and has no effective weight: it cannot be merged")
        if self.pair_form:
            return W + self._pair(host).delta()
        return self.variant.weight(W, self.tensors())

    def _pair(self, host: Host) -> LoRAPair:
        pair = self.variant.as_lora(raised(host.original_dense()), self.tensors())
        assert pair is not None, "pair_form is only chosen when there is a pair"
        return pair

    def _pair_product(self, x: Tensor, host: Host) -> Tensor:
        pair = self._pair(host)
        return project(project(x, pair.A), pair.B)


def _own(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy which shares memory with nothing and which a file format can write as it lies."""
    return tensor.detach().to(device, copy=True, memory_format=torch.contiguous_format)


class Host(nn.Module):
    """A layer that carries adapters. Subclasses name the layer they host as their second base class."""

    adapter: nn.ModuleDict
    switch: Switch
    weight: Any  # nn.Parameter; layer classes declare theirs in ways which a shared base class cannot repeat
    bias: Any  # nn.Parameter | None
    _original: Tensor

    # ---- what a host class defines ----------------------------------------------------------------------------------
    plain: type[nn.Module]  # the class to swap back to

    def frozen(self, x: Tensor) -> Tensor:  # shape: (..., out)
        """The product with the stored weight, without bias."""
        raise NotImplementedError

    def base(self, x: Tensor, stored: Tensor) -> Tensor:  # shape: (..., out)
        """What the plain layer computes from a weight in its stored layout, with bias and in the same operations: a
        product and a bias added afterwards round twice where the layer rounds once."""
        raise NotImplementedError

    def oriented(self, stored: Tensor) -> Tensor:
        """Stored layout to (out, in), and back: an involution."""
        raise NotImplementedError

    # ---- derived ----------------------------------------------------------------------------------------------------
    def dense(self) -> Tensor:  # shape: (out, in)
        """The stored weight; the residual while an adapter has replaced the base."""
        return self.oriented(self.weight)

    def original_dense(self) -> Tensor:  # shape: (out, in)
        """The base weight as it was before anything was attached."""
        return self.oriented(self._original) if self.is_rebased else self.dense()

    @property
    def is_rebased(self) -> bool:
        return self._buffers.get("_original") is not None

    def original_product(self, x: Tensor) -> Tensor:
        return F.linear(x, self.original_dense()) if self.is_rebased else self.frozen(x)

    def carried(self, name: str) -> Adapter:
        """The adapter called ``name`` on this layer."""
        return cast(Adapter, self.adapter[name])

    def active_adapters(self) -> list[tuple[Adapter, float]]:
        return [(self.carried(n), w) for n, w in self.switch.active.items() if n in self.adapter]

    def forward(self, x: Tensor) -> Tensor:
        if self.switch.merged:
            return self.base(x, self.weight)
        if self.switch.rows is not None:
            y = self._row_product(x, self.switch.rows)
        elif active := self.active_adapters():
            y = self._mixed_product(x, active)
        else:
            return self.base(x, self._original if self.is_rebased else self.weight)
        # Under autocast y may be narrower than the bias, which must not widen it.
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def _mixed_product(self, x: Tensor, active: list[tuple[Adapter, float]]) -> Tensor:
        if len(active) == 1 and active[0][1] == 1.0 and not (self.training and active[0][0].dropout):
            return active[0][0].product(x, self)
        y = self.original_product(x)
        total = y
        for adapter, weight in active:
            total = total + weight * adapter.contribution(x, y, self)
        return total

    def _row_product(self, x: Tensor, names: tuple[str | None, ...]) -> Tensor:
        if x.shape[0] != len(names):
            raise ValueError(f"rows() was given {len(names)} names, the batch has {x.shape[0]} rows")
        y = self.original_product(x)
        total = y.clone()
        for name in dict.fromkeys(n for n in names if n is not None and n in self.adapter):
            index = torch.tensor([i for i, n in enumerate(names) if n == name], device=x.device)
            xi, yi = x.index_select(0, index), y.index_select(0, index)
            total = total.index_add(0, index, self.carried(name).contribution(xi, yi, self))
        return total

    @torch.no_grad()
    @full_precision
    def effective_weight(self) -> Tensor:  # shape: (out, in)
        """The weight which the active adapters amount to, in full precision."""
        active = self.active_adapters()
        if len(active) == 1 and active[0][1] == 1.0:
            return active[0][0].effective(self)
        W = raised(self.original_dense())
        return W + sum((w * (a.effective(self) - W) for a, w in active), start=torch.zeros_like(W))

    @torch.no_grad()
    def store(self, W: Tensor) -> None:
        """Writes an (out, in) weight into the layer, rounded once to the layer's dtype."""
        self.weight.copy_(self.oriented(W))

    def replace_weight(self, W: Tensor) -> nn.Parameter:
        """Puts a new parameter in the place of the weight, never writing into the old one, which is returned."""
        old: nn.Parameter = self.weight
        stored = _own(self.oriented(W).to(old.dtype), old.device)
        self.weight = nn.Parameter(stored, requires_grad=False)
        return old

    def rebase(self, base: Tensor, adapter: Adapter) -> None:
        """Replaces the weight by ``base`` and keeps the original, as a buffer so that it follows to another device."""
        self.register_buffer("_original", self.replace_weight(base), persistent=False)
        adapter.rebased = True

    def unrebase(self) -> None:
        """Puts the original weight back, bit for bit; the adapter that replaced it goes on in its exact form."""
        if not self.is_rebased:
            return
        original = self._original
        del self._original
        self.weight = original if isinstance(original, nn.Parameter) else nn.Parameter(original, requires_grad=False)
        for adapter in map(self.carried, self.adapter):
            if adapter.rebased:
                adapter.rebased, adapter.pair_form = False, True

    # ---- the layer's keys mean the base weight, also while the residual stands in its place --------------------------
    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.is_rebased and not self.switch.merged:
            destination[f"{prefix}weight"] = self._original if keep_vars else self._original.detach()

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        if self.switch.merged:
            raise Refused("inside merged() the weights stand for the adapters: leave it first")
        self.unrebase()  # a residual belongs to the weight and the factors it was made with
        super()._load_from_state_dict(state_dict, prefix, *args)


class HostLinear(Host, nn.Linear):
    """Hosts ``torch.nn.Linear``: weight stored as (out, in)."""

    plain = nn.Linear

    def frozen(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)

    def base(self, x: Tensor, stored: Tensor) -> Tensor:
        return F.linear(x, stored, self.bias)

    def oriented(self, stored: Tensor) -> Tensor:
        return stored


HOSTS: dict[type[nn.Module], type[Host]] = {nn.Linear: HostLinear}  # looked up by exact type

# Layers that read the weight of a child themselves: an adapter on the child would be silently ignored.
READERS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.MultiheadAttention: ("out_proj",),
    nn.TransformerEncoderLayer: ("linear1", "linear2"),  # its fused inference path
}


def attach(
    model: nn.Module,
    variant: Variant,
    where: str | Sequence[str] = "all",
    seed: int = 0,
    *,
    name: str = "default",
    dropout: float = 0.0,
    stats: Mapping[str, Tensors] | None = None,
) -> list[str]:
    """Puts ``variant`` on the layers that ``where`` matches, freezes the base, and makes it the active adapter.

    Args:
        where: patterns; each matches a module's whole dotted path or its end (``query``, ``attention.*.dense``).
            ``"all"`` means every layer that has a host.
        seed: decides the initialisation, for each layer separately (by its path); no global generator is touched.
        dropout: probability with which an input of the adapter branch is dropped in training; the frozen product
            always sees the whole input.
        stats: per path, the statistics which ``variant.needs``.

    Returns:
        The paths of the adapted layers, in model order; empty for methods that put nothing on layers.

    Raises:
        Refused: a pattern matches nothing, a layer has no host or is read by somebody else, a statistic is missing, or
            the method cannot work on a layer. The model is then as it was.
    """
    _check_name(model, variant, name)
    if not 0.0 <= dropout < 1.0:
        raise Refused(f"dropout is a probability from 0 to below 1, not {dropout}")
    paths = matching_layers(model, where) if variant.layerwise() else []
    stats = {} if stats is None else stats
    missing = [f"{need} of {path}" for path in paths for need in variant.needs if need not in stats.get(path, {})]
    if missing:
        raise Refused(f"{variant.name} needs statistics that were not given: {', '.join(missing[:3])}")
    inits = {path: _init(model, variant, path, seed, stats.get(path)) for path in paths}
    adapters = {path: Adapter(variant, init, dropout, _device(model, path)) for path, init in inits.items()}
    for path, adapter in adapters.items():
        module = model.get_submodule(path)
        _check_company(path, module)
        adapter.pair_form = inits[path].base is not None and _needs_pair_form(module, adapter)
    # Nothing has been changed so far, and nothing is refused from here on.
    record = _attachment(model) or _start(model)
    for path, adapter in adapters.items():
        host = _as_host(model.get_submodule(path), record.switch)
        host.unrebase()
        base = inits[path].base
        if base is not None and not adapter.pair_form:
            host.rebase(base, adapter)
        host.adapter[name] = adapter.train(host.training)
    for path, parameter in model.named_parameters():
        if path in record.requires_grad and variant.trains_base(path):
            record.trained_base[path] = parameter.detach().clone()
            parameter.requires_grad_(True)
    record.variants[name] = variant
    record.switch.active = {name: 1.0}
    return paths


def detach(model: nn.Module, *, merge: bool, name: str | None = None) -> None:
    """Takes adapters off: merged into the base, or leaving the base bit for bit as it was.

    Args:
        merge: writes the effective weight of the active adapters into the base, rounded once to its dtype. All
            adapters are then removed.
        name: with ``merge=False``, the one adapter to remove; None removes all.

    Raises:
        Refused: nothing is attached under that name, or an active method cannot be merged; nothing changes then.
    """
    record = _require_unmerged(model)
    if merge and name is not None:
        raise Refused("merging removes all adapters: activate() what should be merged, then detach(merge=True)")
    if name is not None:
        _check_known(record, [name])
    if merge:
        weights = {path: host.effective_weight() for path, host in hosts(model).items()}
    last = name is None or set(record.variants) == {name}
    for path, host in hosts(model).items():
        if merge or last or _carries(host, name):
            host.unrebase()
        if merge:
            host.store(weights[path])
        if name is not None and _carries(host, name):
            del host.adapter[name]
        if last or not len(host.adapter):
            _swap_back(host)
    if last:
        _restore_base(model, record, keep_trained=merge)
        return
    assert name is not None
    del record.variants[name]
    record.switch.active.pop(name, None)


@contextmanager
def merged(model: nn.Module) -> Iterator[None]:
    """Inside, the active adapters are merged into the weights; afterwards these are what they were, bit for bit.

    Raises:
        Refused: an active method cannot be merged, or the model is inside ``merged`` already.
    """
    record = _require_unmerged(model)
    weights = [(host, host.effective_weight()) for host in hosts(model).values()]
    kept: list[tuple[Host, nn.Parameter]] = []
    try:
        for host, W in weights:
            kept.append((host, host.replace_weight(W)))
        record.switch.merged = True
        yield
    finally:
        record.switch.merged = False
        for host, weight in kept:
            host.weight = weight


def activate(model: nn.Module, names: str | Iterable[str] | Mapping[str, float] | None) -> None:
    """Switches to the named adapters, in time independent of the model's size.

    Args:
        names: one name, several (their contributions are added), a mapping of names to weights, or None for the base.
    """
    record = _require_unmerged(model)
    if names is None:
        weights: dict[str, float] = {}
    elif isinstance(names, str):
        weights = {names: 1.0}
    else:
        weights = {n: float(w) for n, w in names.items()} if isinstance(names, Mapping) else dict.fromkeys(names, 1.0)
    _check_known(record, weights)
    if record.trained_base and set(weights.values()) != {1.0}:
        raise Refused("a method that trains the base itself cannot be switched off or scaled: detach it")
    record.switch.active = weights


@contextmanager
def rows(model: nn.Module, names: Sequence[str | None]) -> Iterator[None]:
    """Inside, row i of every batch goes through the adapter ``names[i]``, through the base alone where that is None.

    Raises:
        Refused: an unknown name, or a method that trains the base itself, which no row could do without.
    """
    record = _require_unmerged(model)
    _check_known(record, [n for n in names if n is not None])
    if record.trained_base and None in names:
        raise Refused("a method that trains the base itself cannot be switched off for a row: detach it")
    before, record.switch.rows = record.switch.rows, tuple(names)
    try:
        yield
    finally:
        record.switch.rows = before


def adapter_state(model: nn.Module, name: str = "default") -> dict[str, Tensor]:
    """Everything that determines an adapter, under ``<layer path>.adapter.<tensor>``; trained base tensors keep their
    own keys. These are the tensors an adapter file holds, not copies of them: clone what should outlive training."""
    record = _require(model)
    _check_known(record, [name])
    state = {
        f"{path}.adapter.{key}": tensor.detach()
        for path, host in hosts(model).items()
        if name in host.adapter
        for key, tensor in host.carried(name).tensors().items()
    }
    parameters = dict(model.named_parameters())
    return state | {path: parameters[path].detach() for path in record.trained_base}


@torch.no_grad()
def load_adapter_state(model: nn.Module, state: Mapping[str, Tensor], name: str = "default") -> None:
    """Copies tensors of ``adapter_state`` into an adapter attached with the same method, whatever its seed.

    Raises:
        Refused: the keys or shapes differ; nothing changes then.
    """
    _require_unmerged(model)
    mine = adapter_state(model, name)
    if set(mine) != set(state):
        odd = sorted(set(mine) ^ set(state))
        raise Refused(f"the adapter file does not fit the attached method: {len(odd)} keys differ, first {odd[0]!r}")
    for key, tensor in mine.items():
        if tensor.shape != state[key].shape:
            raise Refused(f"{key} has shape {tuple(state[key].shape)}, expected {tuple(tensor.shape)}")
    for host in hosts(model).values():
        if name in host.adapter:
            host.unrebase()  # a residual belongs to the factors it was made with
    for key, tensor in mine.items():
        tensor.copy_(state[key])


def hosts(model: nn.Module) -> dict[str, Host]:
    """The adapted layers by path, in model order."""
    return {path: module for path, module in model.named_modules() if isinstance(module, Host)}


def layer_states(model: nn.Module, name: str = "default") -> list[LayerState]:
    """One LayerState for each layer that carries the adapter, for the model-level methods of a variant."""
    found = [(path, host) for path, host in hosts(model).items() if name in host.adapter]
    return [LayerState(path, host.dense().detach(), host.carried(name).tensors()) for path, host in found]


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters which training changes, by path."""
    return {path: parameter for path, parameter in model.named_parameters() if parameter.requires_grad}


def matching_layers(model: nn.Module, where: str | Sequence[str]) -> list[str]:
    """The paths of the layers that ``where`` selects, each with a host.

    Raises:
        Refused: a pattern matches nothing, or a matched module cannot carry an adapter.
    """
    patterns = [where] if isinstance(where, str) else list(where)
    if not patterns:
        raise Refused("no pattern says where the adapter goes: write 'all' for every layer that has a host")
    inside = tuple(f"{path}." for path in hosts(model))  # adapters on adapters: no
    modules = {path: module for path, module in model.named_modules() if path and not path.startswith(inside)}
    chosen: dict[str, nn.Module] = {}
    for pattern in patterns:
        hit = {p: m for p, m in modules.items() if _selects(pattern, p, m)}
        if not hit:
            raise Refused(f"{pattern!r} matches no layer; layers of this model: {', '.join(_layer_names(modules))}")
        chosen |= hit
    for path, module in chosen.items():
        _check_hostable(modules | {"": model}, path, module)
    return [path for path in modules if path in chosen]


# ---- inside ---------------------------------------------------------------------------------------------------------


def _host_class(cls: type[nn.Module]) -> type[Host] | None:
    if issubclass(cls, Host):
        return cls
    if cls.__module__ == "transformers.pytorch_utils" and cls.__name__ == "Conv1D":
        import variants.core.conv1d  # noqa: F401  registers itself; only a model that has one needs transformers
    return HOSTS.get(cls)


def _selects(pattern: str, path: str, module: nn.Module) -> bool:
    if pattern == "all":
        return _host_class(type(module)) is not None or isinstance(module, nn.Linear)
    return fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(path, f"*.{pattern}")


def _layer_names(modules: Mapping[str, nn.Module]) -> list[str]:
    found = [path for path, module in modules.items() if _host_class(type(module)) is not None]
    return list(dict.fromkeys(re.sub(r"\.\d+(?=\.)", ".*", f".{path}").lstrip(".") for path in found)) or ["none"]


def _check_hostable(modules: Mapping[str, nn.Module], path: str, module: nn.Module) -> None:
    parent_path, _, child = path.rpartition(".")
    for reader, children in READERS.items():
        if isinstance(modules[parent_path], reader) and child in children:
            raise Refused(f"{path} cannot carry an adapter: {reader.__name__} reads its weight itself; leave it out")
    if _host_class(type(module)) is None:
        known = ", ".join(cls.__name__ for cls in HOSTS)
        raise Refused(f"{path} is a {type(module).__name__}, which has no host (exact types: {known}); leave it out")
    weight = module._parameters.get("weight")
    if weight is None or "forward" in module.__dict__:
        made = "a weight that something else computes" if weight is None else "a forward of its own on the instance"
        raise Refused(f"{path} has {made} (a hook, pruning, offloading): attach before that, or leave it out")
    others = (p for p, m in modules.items() if m is not module and any(q is weight for q in m._parameters.values()))
    if sharers := ", ".join(others):
        raise Refused(f"{path} shares its weight with {sharers}, which would not see the adapter; leave it out")


def _stands_alone(variant: Variant, record: Attachment) -> bool:
    """Whether a method cannot share the base: it has no tensors to switch, or changes the base for all the others."""
    return not variant.layerwise() or any(variant.trains_base(path) for path in record.requires_grad)


def _check_name(model: nn.Module, variant: Variant, name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name) or hasattr(nn.ModuleDict(), name):
        raise Refused(f"{name!r} cannot name an adapter: use letters, digits, - and _, and no name of a dict method")
    record = _attachment(model)
    switch = None if record is None else record.switch
    if any(host.switch is not switch for host in hosts(model).values()) or any(
        _attachment(module) for module in model.modules() if module is not model
    ):
        raise Refused("adapters were attached to another module above or below this one: pass that module")
    if record is None:
        return
    _require_unmerged(model)
    if name in record.variants:
        raise Refused(f"an adapter called {name!r} is attached already: detach it, or choose another name")
    loners = [v for v in (variant, *record.variants.values()) if _stands_alone(v, record)]
    if loners:
        raise Refused(f"{loners[0].name} trains the model itself, or nothing of it: it cannot live beside an adapter")


@full_precision
def _init(model: nn.Module, variant: Variant, path: str, seed: int, stats: Tensors | None) -> Init:
    module = model.get_submodule(path)
    host_class = _host_class(type(module))
    assert host_class is not None
    plain = cast(Host, module)  # for `oriented`, which is a function of the layout alone
    stored = module.original_dense() if isinstance(module, Host) else host_class.oriented(plain, plain.weight)
    # On the CPU whatever the device, so that one seed means the same start everywhere. Cloned: init owns its input.
    W = raised(stored.detach()).to("cpu", copy=True)
    try:
        return variant.init(W, layer_rng(seed, path), stats)
    except Refused as error:
        raise Refused(f"{variant.name} on {path}: {error}") from error


def layer_rng(seed: int, path: str) -> torch.Generator:
    """A generator for one layer, independent of which other layers are adapted."""
    digest = hashlib.sha256(f"{seed}:{path}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _device(model: nn.Module, path: str) -> torch.device:
    return cast(Tensor, model.get_submodule(path).weight).device


def _check_company(path: str, module: nn.Module) -> None:
    """Raises Refused if a newcomer would take the residual base from a method that cannot do without it."""
    if isinstance(module, Host) and module.is_rebased:
        for name in module.adapter:
            _check_pair(module.carried(name), f"{path} carries {name!r}", module.original_dense())


def _needs_pair_form(module: nn.Module, adapter: Adapter) -> bool:
    """Whether a method that replaces the base must leave it alone here: it has company, or part of its input drops out
    (which would drop part of the pretrained function)."""
    if not isinstance(module, Host) and not adapter.dropout:
        return False
    _check_pair(adapter, "here it has company or dropout", cast(Tensor, module.weight))
    return True


def _check_pair(adapter: Adapter, where: str, W: Tensor) -> None:
    if adapter.variant.as_lora(raised(W.detach()), adapter.tensors()) is None:
        raise Refused(
            f"{adapter.variant.name} replaces the base and has no exact low-rank form: attach it alone, without "
            f"dropout ({where})"
        )


def _start(model: nn.Module) -> Attachment:
    """Writes down what detach must put back, and freezes the base."""
    record = Attachment(Switch(), {path: parameter.requires_grad for path, parameter in model.named_parameters()})
    model.__dict__[_RECORD] = record
    model.requires_grad_(False)
    return record


def _as_host(module: nn.Module, switch: Switch) -> Host:
    if not isinstance(module, Host):
        module.__class__ = _host_class(type(module))  # type: ignore[assignment]
        host = cast(Host, module)
        host.adapter = nn.ModuleDict().train(host.training)
        host.switch = switch
    return cast(Host, module)


def _carries(host: Host, name: str | None) -> bool:
    return name is not None and name in host.adapter


def _swap_back(host: Host) -> None:
    del host.adapter
    del host.switch
    host.__class__ = host.plain  # type: ignore[assignment]


def _restore_base(model: nn.Module, record: Attachment, keep_trained: bool) -> None:
    for path, parameter in model.named_parameters():
        if path in record.trained_base and not keep_trained:
            with torch.no_grad():
                parameter.copy_(record.trained_base[path])
        if path in record.requires_grad:  # not one that was added since, such as a new head
            parameter.requires_grad_(record.requires_grad[path])
    del model.__dict__[_RECORD]


def _attachment(model: nn.Module) -> Attachment | None:
    return model.__dict__.get(_RECORD)


def _require(model: nn.Module) -> Attachment:
    record = _attachment(model)
    if record is None:
        raise Refused("no adapter is attached to this module: pass the module that attach() was called on")
    return record


def _require_unmerged(model: nn.Module) -> Attachment:
    record = _require(model)
    if record.switch.merged:
        raise Refused("inside merged() the weights stand for the adapters: leave it first")
    return record


def _check_known(record: Attachment, names: Iterable[str]) -> None:
    unknown = [n for n in names if n not in record.variants]
    if unknown:
        raise Refused(f"no adapter called {unknown[0]!r} is attached; there are: {', '.join(record.variants)}")
