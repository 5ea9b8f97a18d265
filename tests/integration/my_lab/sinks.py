"""Sinks of the laboratory, and what is wrong with some."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Notebook:
    """Writes every call into a file of the run directory."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def start(self, run_dir: Path, config: dict[str, Any]) -> None:
        self.path = run_dir / "notebook.json"
        self.calls = json.loads(self.path.read_text()) if self.path.exists() else []
        self._add("start", config["name"])

    def write(self, row: dict[str, float]) -> None:
        self._add("write", row["step"])
        row.clear()  # it is the sink's own

    def flush(self) -> None:
        self._add("flush", None)

    def finish(self, summary: dict[str, Any]) -> None:
        self._add("finish", [summary["status"], summary["steps"]])

    def _add(self, name: str, value: Any) -> None:
        self.calls.append([name, value])
        self.path.write_text(json.dumps(self.calls))


class Offline(Notebook):
    def write(self, row: dict[str, float]) -> None:
        if row["step"] == 7:
            raise ConnectionError("no network")


class Late(Notebook):
    def finish(self, summary: dict[str, Any]) -> None:
        raise ValueError("too late")


class NoStart(Notebook):
    def start(self, run_dir: Path, config: dict[str, Any]) -> None:
        raise KeyError("token")


class Half:
    def write(self, row: dict[str, float]) -> None: ...

    def flush(self) -> None: ...


class Needy(Notebook):
    def __init__(self, url: str, token: str) -> None: ...


class Broken(Notebook):
    def __init__(self) -> None:
        raise RuntimeError("no token")
