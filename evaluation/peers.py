"""Methods of other libraries, run through the same harness: ``peft:NAME`` is any method of the installed PEFT.

A peer is trained and scored like our methods, on a copy of the base. It has no effective weight that we know of, so its
merging is not measured. Its hyperparameters are the fields of PEFT's own configuration class.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from importlib.metadata import PackageNotFoundError, version
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

import variants  # noqa: F401  registers the shipped methods
from evaluation.spec import Unusable
from variants.core import LayerState, Refused, States, Variant, layer_states, trainable_parameters
from variants.core.host import hosts
from variants.core.registry import method, names, register_family, suggestion
from variants.core.targets import matching_layers

# Of PEFT's configurations: what the harness decides, and what does not describe a method.
_OURS = {"peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"}
_OURS |= {"inference_mode", "target_modules"}
_CALIBRATED = ("eva", "corda", "lora_ga")  # starts of PEFT's LoRA that need data


class Peer(Variant):
    """A method that makes a model of its own around a copy of the base."""

    mergeable = False

    def wrap(self, encoder: nn.Module, where: list[str], seed: int, dropout: float) -> nn.Module:
        """The model to train in the place of ``encoder``, which may be changed."""
        raise NotImplementedError


class PeftPeer(Peer):
    """A method of PEFT, with the fields of its configuration as hyperparameters."""

    kind: ClassVar[str]
    release: ClassVar[str]

    def config(self) -> Any:
        """PEFT's configuration object.

        Raises:
            ValueError: PEFT refuses the values.
        """
        import peft

        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        return peft.PEFT_TYPE_TO_CONFIG_MAPPING[self.kind](task_type="FEATURE_EXTRACTION", **values)

    def wrap(self, encoder: nn.Module, where: list[str], seed: int, dropout: float) -> nn.Module:
        import peft

        if dropout:
            raise Refused(f"{self.name}: dropout is a field of PEFT's own; write adapter_dropout = 0 in [training]")
        start = getattr(self, "init_lora_weights", None)
        if start in _CALIBRATED:
            raise Refused(f"{self.name}: {start!r} needs PEFT's own pass over data, which is not made here")
        try:
            config = self.config()
            if hasattr(config, "target_modules"):
                config.target_modules = matching_layers(encoder, where)
            # PEFT draws from the global generator, and warns of what its own dependencies deprecate.
            with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
                torch.manual_seed(seed)
                size = sum(p.numel() for p in encoder.parameters())
                model: nn.Module = peft.get_peft_model(encoder, config)
                model.__dict__["_svdbench_base_size"] = size
                return model
        except Exception as error:  # what PEFT's methods raise where they cannot work is not of one kind
            raise Refused(f"{self.name}: {' '.join(str(error).split())}") from error

    def penalty(self, states: States) -> Tensor | None:
        """AdaLoRA's orthogonality loss, which PEFT adds only where the model computes its loss itself, and KaSA's loss,
        which it leaves to its callers."""
        model = states[0].scratch["model"]
        if getattr(self, "kasa_config", None) is not None:
            return model.base_model._get_kasa_loss()
        if self.kind != "ADALORA":
            return None
        known = states[0].scratch
        if "wide" not in known:  # once: a walk through a whole model, every step, would be timed as PEFT's own
            trained = dict(model.named_parameters())
            known["wide"], known["tall"] = ([p for n, p in trained.items() if f".lora_{x}." in n] for x in "AB")
        wide = [*known["wide"], *(p.T for p in known["tall"])]
        gaps = [torch.linalg.matrix_norm(X @ X.T - torch.eye(len(X), device=X.device)) for X in wide]
        return model.peft_config["default"].orth_reg_weight * torch.stack(gaps).mean()

    def after_step(self, states: States, step: int, total: int) -> None:
        tuner = states[0].scratch["model"].base_model
        if hasattr(tuner, "update_and_allocate"):  # AdaLoRA's budget, which PEFT leaves to its callers
            tuner.update_and_allocate(step)


def is_peer(encoder: nn.Module) -> bool:
    """Whether a peer has made this model."""
    return type(encoder).__module__.startswith("peft.")


def base_size(encoder: nn.Module) -> int:
    """Parameters of the base in a peer's model."""
    return int(encoder.__dict__["_svdbench_base_size"])


def states_of(encoder: nn.Module) -> list[LayerState]:
    """What a method's model-level hooks are given: our layers, or the one state of a peer's model."""
    if not is_peer(encoder):
        return layer_states(encoder)
    return [LayerState("", torch.empty(0), dict(trainable_parameters(encoder)), {"model": encoder})]


def train_branches(encoder: nn.Module) -> None:
    """Puts what belongs to the adapters, but not the base, into training mode: their dropout."""
    for host in hosts(encoder).values():
        host.train()
    if is_peer(encoder):
        for module in encoder.modules():
            if type(module).__module__.startswith("peft."):
                module.training = True  # the flag alone: some layers look at their own
                for name, child in module.named_children():
                    if name not in ("base_layer", "base_model", "model"):
                        child.train()


@functools.cache
def _peft_method(kind: str) -> type[Variant]:
    """A variant class for a method of PEFT, by the name of its type in lower case.

    Raises:
        Unusable: PEFT is not installed, or has no such method.
    """
    try:
        release = version("peft")
    except PackageNotFoundError:
        raise Unusable(f"peft:{kind} needs the package peft: install it with pip install peft") from None
    import peft

    known = {str(getattr(k, "value", k)).lower(): cls for k, cls in peft.PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if kind not in known:
        raise Unusable(f"PEFT {release} has no method {kind!r}: {suggestion(kind, sorted(known))}")
    fields: list[Any] = [
        (f.name, object, dataclasses.field(default=_default(f)))
        for f in dataclasses.fields(known[kind])
        if f.init and f.name not in _OURS and _is_plain(_default(f))
    ]
    twin = kind if kind in names() else "lora"  # a peer starts its search where our method of the same name does
    about: dict[str, Any] = {
        "name": f"peft:{kind}",
        "kind": kind.upper(),
        "release": f"peft {release}",
        "__module__": __name__,
    }
    about |= {"lr_ratio": method(twin).lr_ratio}
    made = dataclasses.make_dataclass(
        f"Peft_{kind}", fields, bases=(PeftPeer,), namespace=about, frozen=True, kw_only=True
    )
    return cast(type[Variant], made)


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


register_family("peft", _peft_method)


def tensors(encoder: nn.Module) -> dict[str, Tensor]:
    """What PEFT would write into the adapter's file, each tensor with memory of its own."""
    import peft

    return {name: tensor.detach().clone() for name, tensor in peft.get_peft_model_state_dict(encoder).items()}
