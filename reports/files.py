"""What the report's files are made of: atomic writing, data addresses, and text that is safe in a script."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from markupsafe import Markup
from platformdirs import user_cache_path


def data_uri(kind: str, content: str | bytes) -> str:
    """The content as an address that holds it."""
    raw = content.encode() if isinstance(content, str) else content
    return f"data:{kind};base64,{base64.b64encode(raw).decode()}"


def script_json(value: Any) -> Markup:
    """JSON that can stand in a script element whatever text it holds."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def inside_script(source: str) -> str:
    """JavaScript that cannot end its script element: inside strings and patterns ``<\\/`` means ``</``."""
    return source.replace("</script", "<\\/script").replace("</SCRIPT", "<\\/SCRIPT").replace("<!--", "<\\!--")


def vega_libraries() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script.

    Bundling takes almost two seconds and gives the same text for one version of vl-convert, so it is kept in the cache
    folder; without a folder that can be written it is done again.
    """
    root = os.environ.get("SVDBENCH_CACHE")
    folder = Path(root).expanduser() if root else user_cache_path("svdbench")
    kept = folder / f"vega-{version('vl-convert-python')}.js"
    with contextlib.suppress(OSError):
        return kept.read_text(encoding="utf-8")
    import vl_convert

    source: str = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # the stub wrongly asks for a snippet
    with contextlib.suppress(OSError):
        write_atomically(kept, source)
    return source


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes beside the file and moves into its place, so nobody ever reads half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        os.chmod(temporary, 0o644)  # mkstemp gives 0600, which a web server cannot read
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
