"""The adapter interface: what a method is, and how it gets onto a model."""

from variants.core.accelerating import accelerate as accelerate, decelerate as decelerate
from variants.core.attach import attach as attach, detach as detach
from variants.core.files import load as load, save as save
from variants.core.host import HOSTS as HOSTS
from variants.core.interface import (
    STATISTICS as STATISTICS,
    FrozenProduct as FrozenProduct,
    Init as Init,
    LayerState as LayerState,
    LoRAPair as LoRAPair,
    Refused as Refused,
    States as States,
    Tensors as Tensors,
    Variant as Variant,
    project as project,
)
from variants.core.lowrank import LowRank as LowRank
from variants.core.registry import (
    UnknownHyperparameter as UnknownHyperparameter,
    UnknownMethod as UnknownMethod,
    create as create,
    method as method,
    names as names,
    register as register,
)
from variants.core.storage import adapter_state as adapter_state, load_adapter_state as load_adapter_state
from variants.core.switching import (
    activate as activate,
    layer_states as layer_states,
    merged as merged,
    rows as rows,
    trainable_parameters as trainable_parameters,
)
