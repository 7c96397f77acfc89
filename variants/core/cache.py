"""Decompositions kept on disk by content, so that every method, run and process computes each of them once.

Off until a program says where: ``keep_in(folder)``. A file is named after the weight's bytes and the version of the
algorithm; it holds the most triplets asked for so far, and fewer are cut from it. It starts with the digest of the
rest, so a damaged one is noticed and computed again.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

log = logging.getLogger("svdbench")
Triplets = tuple[Tensor, Tensor, Tensor]  # U (out, k), s (k,), Vh (k, in)
ALGORITHM = 1  # raise when a decomposition changes: what was kept is then not found any more
_DIGITS = 64  # of a sha256 in hex
_folder: Path | None = None


def keep_in(folder: Path | None) -> None:
    """Says where decompositions are kept in this process; None turns keeping off."""
    global _folder
    _folder = folder


@contextmanager
def not_kept() -> Iterator[None]:
    """Inside, every decomposition is computed: for measuring how long that takes."""
    folder = _folder
    keep_in(None)
    try:
        yield
    finally:
        keep_in(folder)


def kept(W: Tensor, rank: int, compute: Callable[[Tensor, int], Triplets]) -> Triplets:
    """The ``rank`` leading triplets of W, from disk if they are there, else from ``compute`` and then kept.

    Nothing fails for want of a disk: what cannot be read is computed, what cannot be written is not kept.
    """
    if _folder is None or W.device.type != "cpu":
        return compute(W, rank)
    path = _folder / f"{_key(W)}.triplets"
    found = _read(path)
    if found is None or found[1].numel() < rank:
        found = compute(W, rank)
        _write(path, found)
    U, s, Vh = found
    return U[:, :rank].contiguous(), s[:rank].contiguous(), Vh[:rank].contiguous()


def _key(W: Tensor) -> str:
    header = f"{ALGORITHM}:{tuple(W.shape)}:{W.dtype}:"
    contents = W.detach().contiguous().view(torch.uint8).numpy()
    return hashlib.sha256(header.encode() + contents.tobytes()).hexdigest()


def _read(path: Path) -> Triplets | None:
    try:
        digest, contents = (raw := path.read_bytes())[:_DIGITS], raw[_DIGITS:]
    except OSError:
        return None
    if hashlib.sha256(contents).hexdigest().encode() != digest:
        log.warning("damaged decomposition in %s: it is computed again", path)
        return None
    tensors = safetensors.torch.load(contents)
    return tensors["U"], tensors["s"], tensors["Vh"]


def _write(path: Path, triplets: Triplets) -> None:
    tensors = dict(zip(("U", "s", "Vh"), (t.contiguous() for t in triplets), strict=True))
    contents = safetensors.torch.save(tensors)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent)
        try:  # whole or not at all
            with open(descriptor, "wb") as file:
                file.write(hashlib.sha256(contents).hexdigest().encode() + contents)
            os.replace(name, path)
        finally:
            Path(name).unlink(missing_ok=True)
    except OSError as error:
        log.warning("a decomposition cannot be kept in %s: %s", path.parent, error.strerror or error)
