"""Every method, one file each. Importing this package registers them all."""

from variants import (
    dora as dora,
    full as full,
    lora as lora,
    lora_xs as lora_xs,
    milora as milora,
    pissa as pissa,
    probe as probe,
    stiefel as stiefel,
)
