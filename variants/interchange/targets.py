"""Which layers a configuration of PEFT's means, by PEFT's own rules, and how to say exactly which."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from variants.core.interface import Refused

ALL_LINEAR = "all-linear"
_MOST_PATTERNS = 10_000
_MOST_PATTERN = 100_000  # characters; every layer of a large model by its full path takes less


# ---- saying it ------------------------------------------------------------------------------------------------------


def target_modules(paths: Collection[str], modules: Iterable[str]) -> list[str] | str:
    """What PEFT is to be told to adapt these modules and no others: their paths; a regular expression where a path is
    also the end of another module's, since PEFT takes a path for an ending."""
    ends = tuple(f".{path}" for path in paths)
    if any(module.endswith(ends) and module not in paths for module in modules):
        return one_of(paths)
    return sorted(paths)


def one_of(paths: Iterable[str]) -> str:
    """The regular expression that matches these paths as a whole, and nothing else."""
    return f"(?:{'|'.join(map(re.escape, sorted(paths)))})"


def exactly(path: str) -> str:
    """The key by which PEFT's patterns of ranks mean this module alone: they are searched as endings otherwise."""
    return f"^{re.escape(path)}"


# ---- reading it -----------------------------------------------------------------------------------------------------


def numeric(what: str, value: Any) -> float:
    """A number out of a file, whole or not.

    Raises:
        Refused: it is none, or larger than any could be.
    """
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < 2**63:
        raise Refused(f"{what} stands for a finite number, not {str(value)[:80]!r}")
    return value


class Patterns:
    """Numbers for the layers which a pattern means: by the whole of their path, or by its end after a dot."""

    def __init__(self, table: Mapping[str, Any]) -> None:
        if len(table) > _MOST_PATTERNS:
            raise Refused(
                f"{len(table)} patterns are more than any model has layers: at most {_MOST_PATTERNS} are read"
            )
        self._numbers = [
            (compiled(pattern, r"(.*\.)?(", ")$"), numeric(f"the pattern {pattern[:80]!r}", value))
            for pattern, value in table.items()
        ]

    def number(self, path: str, otherwise: float) -> Any:
        """That of the first pattern which means this path."""
        return next((value for pattern, value in self._numbers if pattern.match(path)), otherwise)


def check_targets(config: Mapping[str, Any]) -> None:
    """Raises Refused unless the options that choose layers are of their types."""
    for key in ("target_modules", "exclude_modules", "layers_pattern"):
        value = config.get(key)
        listed = isinstance(value, list) and all(isinstance(entry, str) for entry in value)
        if not (value is None or isinstance(value, str) or listed):
            raise Refused(f"{key} is a text or a list of texts, not {str(value)[:80]}")
    chosen = config.get("layers_to_transform")
    numbers = [] if chosen is None else chosen if isinstance(chosen, list) else [chosen]
    if not all(isinstance(number, int) for number in numbers):
        raise Refused(f"layers_to_transform is a number or a list of numbers, not {str(chosen)[:80]}")


def is_target(config: Mapping[str, Any], path: str) -> bool:
    """Whether a configuration means the module at this path. It must not say ``all-linear``, which depends on more."""
    excluded = config.get("exclude_modules")
    if excluded and (_fullmatch(excluded, path) if isinstance(excluded, str) else _ends(path, excluded)):
        return False
    targets = config.get("target_modules")
    if not targets:
        return False
    if isinstance(targets, str):
        return _fullmatch(targets, path)
    return path in targets or (_ends(path, targets) and _in_layers(config, path))


def _ends(path: str, names: Iterable[str]) -> bool:
    return any(path == name or path.endswith(f".{name}") for name in names)


def _in_layers(config: Mapping[str, Any], path: str) -> bool:
    """By the number of the layer, where ``layers_to_transform`` chooses some."""
    chosen = config.get("layers_to_transform")
    if chosen is None or chosen == []:
        return True
    patterns = config.get("layers_pattern") or [r"[^.]*"]
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        lead = r".*?\." if pattern == r"[^.]*" else r"(?:^|.*?\.)"
        if found := compiled(pattern, lead, r"\.(?P<index>\d+)\.").match(path):
            return int(found["index"]) in ([chosen] if isinstance(chosen, int) else chosen)
    return False


def _fullmatch(pattern: str, path: str) -> bool:
    return compiled(pattern).fullmatch(path) is not None


def compiled(pattern: str, before: str = "", after: str = "") -> re.Pattern[str]:
    """A regular expression between two others of ours, unless trying it could take for ever: a file may hold any.

    Raises:
        Refused: it is no regular expression, changes how others are read, or repeats and branches more than a choice
            of layers needs.
    """
    endless = f"the pattern {pattern[:80]!r} could take for ever to match: name the layers by their paths"
    if len(pattern) > _MOST_PATTERN:
        raise Refused(endless)
    # A class that is not closed takes the rest, so that many of them take no longer than one.
    bare = re.sub(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*(?:\]|\\?\Z)", "x", pattern, flags=re.DOTALL)
    if extension := re.search(r"\(\?(?![:=!<])", bare):
        raise Refused(f"{pattern[:80]!r} holds {bare[extension.start() :][:3]!r}, which is not read: use plain groups")
    repeats, options, branching = (len(re.findall(p, bare)) for p in (r"[*+{]", r"(?<!\()\?", r"\([^()]*\|"))
    if repeats > 4 or max(options, branching) > 6 or re.search(r"\)[*+{]", bare):
        raise Refused(endless)
    try:
        re.compile(pattern)  # by itself: "a)|(b" is none
        return re.compile(f"{before}{pattern}{after}")
    except (re.error, RecursionError, OverflowError) as error:
        raise Refused(f"{pattern[:80]!r} is no regular expression: {str(error)!r}") from error
