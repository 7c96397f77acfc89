"""A comparison from the suite's name to the files that reports read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from evaluation.benchmarks import load_benchmark
from evaluation.digests import harness_digest, source_digest
from evaluation.engines.local import Account
from evaluation.machine import cores, environment, resolve_device
from evaluation.models import digest_of, prefetch
from evaluation.plugins import load_plugins
from evaluation.protocol import Plan
from evaluation.resolving import resolve
from evaluation.spec import Identity, Record, key, load_suite
from evaluation.store import Store, writing
from variants.core import method


def make_plan(name: str, changes: dict[str, str], device: str, plugins: list[str]) -> Plan:
    """Reads a suite, fetches what it needs and digests it.

    Raises:
        Unusable: anything in the suite, the plug-ins, the device or the downloads cannot be used.
    """
    load_plugins(plugins)
    raw = load_suite(name, changes)
    device_type = resolve_device(device).type
    suite = resolve(raw)
    prefetch(suite.model)
    text = suite.spectrum.text if suite.spectrum else None
    identity = Identity(
        model=digest_of(suite.model),
        data=load_benchmark(suite.benchmark).digest,
        methods={entry.method.name: source_digest(method(entry.method.name)) for entry in suite.methods},
        forgetting=load_benchmark(text).digest if text else None,
        code=harness_digest(),
    )
    plan = Plan(suite, identity, device_type, cores())
    plan.tallies({})  # refuses an impossible grid now, not when work has begun
    return plan


def export(plan: Plan, store: Store, failed: Iterable[Record], command: str, account: Account, workers: int) -> None:
    """Writes what reports read: suite.json, records.jsonl (this suite's records only) and wall.json."""
    failures = {record.key: record for record in failed}
    known = store.records | failures
    records = [known[key(run)] for run in plan.runs(known) if key(run) in known]
    lines = [json.dumps(r.model_dump(mode="json")) for r in records]
    suite = {"suite": plan.suite.model_dump(mode="json"), "command": command, "versions": environment()}
    with writing(store.directory):
        replace(store.directory / "records.jsonl", "".join(line + "\n" for line in lines))
        replace(store.directory / "suite.json", json.dumps(suite, indent=1, ensure_ascii=False))
        if account.computed:
            wall = {
                "wall_seconds": account.wall,
                "workers": workers,
                "overhead_share": account.overhead_share,
                "computed_runs": account.computed,
            }
            replace(store.directory / "wall.json", json.dumps(wall))


def replace(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    partial = path.with_name(f".{path.name}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
