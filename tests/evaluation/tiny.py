"""A model folder small enough that a whole suite runs in seconds, and suites on it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertModel

from evaluation.assets import fetch

ROOT = Path(__file__).parents[2]

SUITE = """
model = {model}
benchmark = "trec50"
where = ["query", "value"]
limit = 40

[training]
steps = 3
batch_size = 8

[protocol]
points = 2
seeds = 2

[merging]
items = 8
{more}
[[methods]]
name = "lora"
rank = 2

[[methods]]
name = "pissa"
rank = 2

[[methods]]
name = "probe"
"""
TEMPLATE = """
model = "m"
benchmark = "b"
where = "query"
{before}
[[methods]]
name = "lora"
{inside}
[[methods]]
name = "probe"
"""  # read and checked, never run
NO_SPEED = "\n[speed]\nbatch_size = 1\ntokens = 4\nwarmup = 1\nrounds = 2\n"


def make_model(folder: Path) -> Path:
    """A BERT of two layers with random weights and MiniLM's tokenizer."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
        BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        source = fetch("minilm") / name
        if source.is_file():
            shutil.copy(source, folder / name)
    return folder


def make_suite(folder: Path, model: Path, extra_methods: str = "") -> Path:
    path = folder / "tiny.toml"
    path.write_text(SUITE.format(model=json.dumps(str(model)), more=NO_SPEED) + extra_methods)
    return path


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, str(ROOT / "tasks.py"), *map(str, arguments)]


def svdbench(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a verb of the command line to its end."""
    return subprocess.run(
        command(*arguments),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        # Threads that spin while they wait would fight with the tests in other processes.
        env=os.environ | {"OMP_WAIT_POLICY": "passive"} | environment,
        check=False,
    )


def measured(results: Path) -> dict[str, Any]:
    """What the records say, without what may differ from time to time: seconds and speed."""
    found = {}
    for line in (results / "records.jsonl").read_text().splitlines():
        record = json.loads(line)
        record["measures"].pop("speed", None)
        record["measures"].get("merging", {}).pop("cost", None)
        found[record["key"]] = (record["run"], record["status"], record["measures"])
    return found
