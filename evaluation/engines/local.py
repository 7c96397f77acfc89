"""Runs on this machine: a pool of processes, one thread each, with base and data loaded once per process.

Score runs share the machine; a speed run starts only when nothing else runs, and has all of it. Only the parent writes
to the store. A worker whose parent is gone ends itself, so that a killed command leaves nothing behind that could get
in the way of the next one.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import TYPE_CHECKING

from evaluation.protocol import Plan
from evaluation.quiet import QUIET
from evaluation.spec import Record, Run, ScoreRun, SpeedRun, Suite, Unusable, key
from evaluation.store import Store
from evaluation.trying import with_all_settings

if TYPE_CHECKING:
    from evaluation.execute import Workbench

WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    **QUIET,
}


@dataclass
class Progress:
    """What is going on, for whoever shows it."""

    done: int
    total: int
    running: list[Run] = field(default_factory=list)
    seconds_left: float | None = None
    latest: Record | None = None


@dataclass
class Account:
    """What the time went to. Seconds are summed over the worker slots that the phase had."""

    wall: float = 0.0
    slots: float = 0.0
    useful: float = 0.0
    computed: int = 0

    @property
    def overhead_share(self) -> float:
        """Share of the slots' time not spent in forward, backward, optimiser (hooks included), evaluation or
        spectra."""
        return 1 - self.useful / self.slots if self.slots else 0.0


class LocalEngine:
    """Carries out a plan.

    Args:
        workers: processes for score runs.
        plugins: files or modules with further methods, imported in every worker.
        show: called with the progress whenever something starts or ends, and about twice a second.
    """

    def __init__(self, plan: Plan, store: Store, workers: int, plugins: list[str], show: Callable[[Progress], None]):
        self.plan, self.store, self.workers, self.plugins, self.show = plan, store, workers, plugins, show
        self.pool: ProcessPoolExecutor | None = None
        self.futures: dict[Future[Record], tuple[Run, float]] = {}
        self.suspects: set[str] = set()  # were in flight when a worker died; tried once more, alone
        self.failed: dict[str, Record] = {}  # not stored: they are tried again by the next command
        self.account = Account()
        self.began = time.perf_counter()

    def run(self) -> Account:
        """Executes every run that the plan needs and the store lacks.

        Raises:
            Unusable: the suite cannot be run on this model; nothing has been stored then.
        """
        if self._pending():
            try:
                self._check()
                self._loop()
            finally:
                self._close()
                self.account.wall = time.perf_counter() - self.began
                self.account.slots += self.account.wall * self.workers
        return self.account

    # ---- scheduling -------------------------------------------------------------------------------------------------
    def _pending(self) -> list[Run]:
        known = self.store.records | self.failed
        running = {key(run) for run, _ in self.futures.values()}
        return [run for run in self.plan.runs(known) if key(run) not in known and key(run) not in running]

    def _loop(self) -> None:
        while True:
            for run in sorted(self._pending(), key=lambda run: key(run) not in self.suspects):
                if self._fits(run):
                    self._submit(run)
            self.show(self._progress())
            if not self.futures:
                return
            done, _ = wait(self.futures, timeout=0.5, return_when=FIRST_COMPLETED)
            for future in done:
                if future in self.futures:  # collecting one whose worker died collects all the others too
                    self._collect(future)

    def _submit(self, run: Run) -> None:
        folder = self.store.begin(key(run))
        try:
            future = self._executor().submit(_work, run, folder)
        except BrokenProcessPool:  # a worker died since the last look
            self._drop_pool()
            future = self._executor().submit(_work, run, folder)
        self.futures[future] = run, time.perf_counter()

    def _fits(self, run: Run) -> bool:
        running = [run for run, _ in self.futures.values()]
        return not running or (len(running) < self.workers and not any(map(self._alone, [run, *running])))

    def _alone(self, run: Run) -> bool:
        return isinstance(run, SpeedRun) or key(run) in self.suspects

    def _collect(self, future: Future[Record]) -> None:
        run, began = self.futures.pop(future)
        try:
            record = future.result()
        except BrokenProcessPool:
            self._drop_pool()
            if key(run) not in self.suspects:
                self.suspects.add(key(run))
                return
            record = _failure(run, "the worker process died, for example because memory ran out")
        self.account.computed += 1
        if record.status == "failed":
            self.failed[record.key] = record
            self.store.drop(record.key)
        else:
            self.store.put(record)
        self._book(record, time.perf_counter() - began)
        self.show(self._progress(record))

    def _drop_pool(self) -> None:
        """A pool that lost a worker is of no use any more: all its futures end now; the next run gets a new pool."""
        if self.pool is None:
            return
        self.pool = None
        wait(self.futures)
        for future in list(self.futures):
            self._collect(future)

    def _book(self, record: Record, elapsed: float) -> None:
        useful = ("forward", "backward", "optimiser", "hooks", "evaluation", "spectrum")
        self.account.useful += sum(record.seconds.get(phase, 0.0) for phase in useful)
        if isinstance(record.run, SpeedRun):  # the other slots were empty on purpose
            self.account.slots -= elapsed * (self.workers - 1)

    def _progress(self, latest: Record | None = None) -> Progress:
        known = self.store.records | self.failed
        done = sum(key(run) in known for run in self.plan.runs(known))
        running = [run for run, _ in self.futures.values()]
        return Progress(
            done, self.plan.total(known), running, seconds_left(self.plan, self.store.records, self.workers), latest
        )

    # ---- the pool ---------------------------------------------------------------------------------------------------
    def _executor(self) -> ProcessPoolExecutor:
        if self.pool is None:
            os.environ.update(WORKER_ENVIRONMENT)  # inherited: the libraries read it when a worker imports them
            self.pool = ProcessPoolExecutor(
                self.workers,
                mp_context=get_context("spawn"),
                initializer=_start,
                initargs=(self.plan.suite.model, self.plan.suite.benchmark, self.plan.device, self.plugins),
            )
        return self.pool

    def _check(self) -> None:
        """Tries every method on the model before anything is stored; meanwhile the other workers load."""
        pool = self._executor()
        checks = [pool.submit(_check, with_all_settings(self.plan.suite))]
        checks += [pool.submit(_check, None) for _ in range(self.workers - 1)]
        for check in checks:
            try:
                problem = check.result()
            except BrokenProcessPool:
                problem = "a worker process died while the methods were tried on the model"
            if problem:
                raise Unusable(problem)

    def _close(self) -> None:
        if self.pool is None:
            return
        processes = list((self.pool._processes or {}).values())
        self.pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:  # idle, or computing something that nobody waits for
            process.terminate()


def seconds_left(plan: Plan, records: dict[str, Record], workers: int) -> float | None:
    """Seconds until a plan is complete; None before the first record.

    Each missing step is expected to take the mean time that runs of the same method and stage took a step, else those
    of the same stage, else all so far: the runs of a race differ in length. Where training time is matched it is runs
    that are alike, whatever their steps.
    """
    matched = plan.suite.match == "seconds"
    scores = [r for r in records.values() if isinstance(r.run, ScoreRun)]
    if not scores:
        return None

    def each(chosen: list[Record]) -> float | None:
        number = len(chosen) if matched else _steps(chosen)
        return sum(r.seconds["total"] for r in chosen) / number if chosen else None

    total = 0.0
    for tally in plan.tallies(records):
        if tally.stage == "speed":  # runs alone, while the other workers wait
            total += tally.left * workers * _speed_guess(plan, scores)
            continue
        if tally.entry is None:
            total += tally.left * sum(r.seconds["total"] for r in scores) / len(scores)
            continue
        same_stage = [r for r in scores if isinstance(r.run, ScoreRun) and r.run.stage == tally.stage]
        same = [r for r in same_stage if isinstance(r.run, ScoreRun) and plan.suite.is_of(tally.entry, r.run)]
        left = tally.left if matched else tally.steps
        total += left * (each(same) or each(same_stage) or each(scores) or 0.0)
    return total / workers


def _speed_guess(plan: Plan, scores: list[Record]) -> float:
    spent = [sum(r.seconds.get(p, 0.0) for p in ("forward", "backward", "optimiser")) for r in scores]
    step = sum(spent) / _steps(scores)
    assert plan.suite.speed is not None
    return step * (plan.suite.speed.warmup + plan.suite.speed.rounds) * (len(plan.suite.methods) + 2)


def _steps(records: list[Record]) -> int:
    return sum(r.run.training.steps for r in records)


def _failure(run: Run, error: str) -> Record:
    return Record(key=key(run), run=run, status="failed", error=error)


# ---- inside a worker ------------------------------------------------------------------------------------------------

_setup: tuple[str, str, str] | None = None
_bench: Workbench | None = None


def _start(model: str, benchmark: str, device: str, plugins: list[str]) -> None:
    global _setup
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    import torch

    from evaluation.assets import cache_root
    from evaluation.plugins import load_plugins
    from variants.core import cache

    torch.set_num_threads(1)
    cache.keep_in(cache_root() / "decompositions")
    load_plugins(plugins)
    _setup = model, benchmark, device


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _workbench() -> Workbench:
    global _bench
    if _bench is None:
        import torch

        from evaluation.execute import Workbench

        assert _setup is not None
        _bench = Workbench(_setup[0], _setup[1], torch.device(_setup[2]))
    return _bench


def _check(suite: Suite | None) -> str | None:
    """What is wrong with a suite on the model; with None, nothing is tried: the worker only loads."""
    try:
        bench = _workbench()
        if suite:
            bench.check(suite)
    except Unusable as problem:
        return str(problem)
    except Exception as error:  # a method's own code, on this model: anything may come
        return f"the methods cannot be tried on the model: {type(error).__name__}: {' '.join(str(error).split())}"
    return None


def _work(run: Run, folder: Path) -> Record:
    from evaluation.execute import execute

    try:
        return execute(run, _workbench(), folder)
    except Exception as error:
        where = traceback.format_exc(limit=-3)
        return _failure(run, f"{type(error).__name__}: {error}\n{where}")
