"""Adapters and merged models as other programs know them: folders of huggingface/peft and of transformers."""

from variants.interchange.exporting import (
    Exported as Exported,
    export_merged as export_merged,
    export_peft as export_peft,
)
from variants.interchange.importing import Imported as Imported, import_peft as import_peft
