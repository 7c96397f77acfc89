"""Decompositions of base weights kept on disk by content: every method, run and process needs each of them only once.

Off until a program says where: ``keep_in(folder)``. A file is named after the weight's bytes and the version of the
algorithm, and starts with the digest of the rest, so a damaged one is noticed and computed again.
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
import scipy
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


def kept(W: Tensor, kind: str, compute: Callable[[Tensor], Triplets]) -> Triplets:
    """``compute(W)``, from disk if it is there, else computed and then kept.

    Nothing fails for want of a disk: what cannot be read is computed, what cannot be written is not kept.

    Args:
        kind: which decomposition, so that what one call gives does not depend on what another one asked for before.
    """
    if _folder is None or W.device.type != "cpu":
        return compute(W)
    key = _key(W, kind)
    path = _folder / f"{key}.triplets"
    found = _read(path, key)
    if found is None:
        found = compute(W)
        _write(path, key, found)
    return found


def _key(W: Tensor, kind: str) -> str:
    header = f"{ALGORITHM}:{scipy.__version__}:{kind}:{tuple(W.shape)}:{W.dtype}:"
    digest = hashlib.sha256(header.encode())
    digest.update(W.detach().contiguous().view(torch.uint8).numpy().data)  # as it lies: most of what a hit takes
    return digest.hexdigest()


def _digest(key: str, contents: bytes) -> bytes:
    return hashlib.sha256(key.encode() + contents).hexdigest().encode()  # a file under another name is damaged too


def _read(path: Path, key: str) -> Triplets | None:
    try:
        raw = path.read_bytes()
    except OSError:
        return None
    digest, contents = raw[:_DIGITS], raw[_DIGITS:]
    if _digest(key, contents) != digest:
        log.warning("damaged decomposition in %s: it is computed again", path)
        return None
    tensors = safetensors.torch.load(contents)
    return tensors["U"], tensors["s"], tensors["Vh"]


def _write(path: Path, key: str, triplets: Triplets) -> None:
    tensors = dict(zip(("U", "s", "Vh"), (t.contiguous() for t in triplets), strict=True))
    contents = safetensors.torch.save(tensors)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent)
        try:  # whole or not at all
            with open(descriptor, "wb") as file:
                file.write(_digest(key, contents) + contents)
            os.replace(name, path)
        finally:
            Path(name).unlink(missing_ok=True)
    except OSError as error:
        log.warning("a decomposition cannot be kept in %s: %s", path.parent, error.strerror or error)
