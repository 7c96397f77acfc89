"""One file a measurement; each returns plain JSON, described in its docstring."""
