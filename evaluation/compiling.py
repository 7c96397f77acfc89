"""Compiling a model block by block, so that equal blocks share one graph, however many there are.

Only what is differentiated runs compiled. Evaluation runs the blocks as they are: its numbers then do not depend on the
option, and no graph is built for it.
"""

from __future__ import annotations

import importlib.util
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from torch import nn

from evaluation.spec import Unusable
from variants.core import Refused

Backend = str | Callable[..., Any]
BACKEND: Backend = "inductor"  # of ``torch.compile``, unless another is given


def check_compiler(device: torch.device) -> None:
    """Raises Unusable unless what compiles for the device is installed, in one line."""
    if BACKEND != "inductor":
        return
    from torch._inductor import cpp_builder, exc  # slow to import

    try:
        cpp_builder.get_cpp_compiler()
    except (exc.InvalidCxxCompiler, RuntimeError):
        raise _lacking("a C++ compiler, and found none: install g++ or clang") from None
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        raise _lacking("Python's header files, and found no Python.h: install them (on Debian, python3-dev)")
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise _lacking("Triton on CUDA, and found none: pip install triton")


def _lacking(what: str) -> Unusable:
    return Unusable(f"compile needs {what}, or leave compile out")


def blocks(encoder: nn.Module) -> list[nn.Module]:
    """What the model repeats: the members of every ``nn.ModuleList`` of one class, the outermost of nested lists.

    Raises:
        Refused: there are none.
    """
    found: list[nn.Module] = []
    within: set[nn.Module] = set()
    for module in encoder.modules():
        if isinstance(module, nn.ModuleList) and module not in within and len({type(block) for block in module}) == 1:
            found += module
            within.update(*(block.modules() for block in module))
    if not found:
        raise Refused(
            "compile: the model has no list of equal blocks (an nn.ModuleList of one class): leave compile out"
        )
    return found


@contextmanager
def compiled(encoder: nn.Module, wanted: bool, device: torch.device, backend: Backend | None = None) -> Iterator[None]:
    """Inside, and if wanted, every block is compiled by itself, without a graph break and for all lengths; afterwards
    blocks are called as before. Random numbers are drawn as without compilation.

    Raises:
        Refused: as in ``blocks``.
    """
    if not wanted:
        yield
        return
    before = {block: block.__dict__.get("_compiled_call_impl") for block in blocks(encoder)}
    # One thread compiles: workers of a suite already fill the machine, and daemons would outlive the run. A batch of as
    # many rows as tokens says nothing of the next one: sizes that are equal by chance stay apart.
    with (
        torch._inductor.config.patch(fallback_random=True, compile_threads=1),
        torch.fx.experimental._config.patch(use_duck_shape=False),  # type: ignore[attr-defined]
    ):
        try:
            compile_blocks(encoder, device, backend)
            yield
        finally:
            for block, call in before.items():
                block._compiled_call_impl = call
            torch._dynamo.reset()  # graphs, and on CUDA the memory which belongs to them


def compile_blocks(encoder: nn.Module, device: torch.device, backend: Backend | None = None) -> None:
    """Compiles the blocks of a model that nobody else uses, within ``compiled`` of another.

    Raises:
        Refused: as in ``blocks``.
    """
    chosen = backend or BACKEND
    # On CUDA the launches of a small model's kernels cost more than the kernels: they are recorded as CUDA graphs.
    graphs = {"mode": "reduce-overhead"} if device.type == "cuda" and chosen == "inductor" else {}
    # Dynamo keeps its graphs by code object, and at most a few for each: every model has a code object of its own.
    own = FunctionType(_call.__code__.replace(), globals())
    graph = torch.compile(own, fullgraph=True, dynamic=True, backend=chosen, **graphs)  # type: ignore[call-overload]
    for block in blocks(encoder):
        block._compiled_call_impl = partial(_differentiated, graph, block)


def _call(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return block._call_impl(*args, **kwargs)


def _differentiated(graph: Callable[..., Any], block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return (graph if torch.is_grad_enabled() else _call)(block, *args, **kwargs)


def step_begins(device: torch.device) -> None:
    """Says that outputs of the step before are no longer used: their memory is that of the next step's CUDA graphs."""
    if device.type == "cuda":
        torch.compiler.cudagraph_mark_step_begin()


@contextmanager
def refusing(name: str) -> Iterator[None]:
    """What the compiler cannot compile is refused in one line."""
    try:
        yield
    except torch._dynamo.exc.TorchDynamoException as error:
        lines = [line.strip() for line in str(error).splitlines()]
        why = next((line.partition(": ")[2] for line in lines if line.startswith("Explanation: ")), lines[0])
        raise Refused(f"{name} cannot be compiled in one graph ({why}): leave compile out, or the method") from error
