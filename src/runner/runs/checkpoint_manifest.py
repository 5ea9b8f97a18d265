"""The list of a checkpoint's files, by which one that is damaged, missing, mixed in or unknown is told from those written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

MANIFEST = "manifest.json"

Files: TypeAlias = Mapping[str, tuple[int, str]]
"""Name → size in bytes and SHA-256."""


def manifest_of(step: int, files: Files) -> bytes:
    """The one content that the manifest of a step with these files can have."""
    body = {"step": step, "files": {name: {"bytes": size, "sha256": digest} for name, (size, digest) in files.items()}}
    return _canonical({**body, "sha256": hashlib.sha256(_canonical(body)).hexdigest()})


def _canonical(value: Any) -> bytes:
    """The one way in which a value is written: a reader that finds another one knows that bytes have changed."""
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def measured(data: bytes) -> tuple[int, str]:
    """Size and SHA-256."""
    return len(data), hashlib.sha256(data).hexdigest()


def measured_file(path: Path) -> tuple[int, str]:
    """Size and SHA-256 of a file that need not fit in memory. Raises OSError."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
            size += len(part)
    return size, digest.hexdigest()


def mismatch(step: int, manifest: bytes, files: Files) -> str | None:
    """How the manifest differs from the one that belongs to this step and these files; None if it does not."""
    if manifest == manifest_of(step, files):
        return None
    try:
        found = json.loads(manifest)
        body = {name: value for name, value in found.items() if name != "sha256"}
        own, sealed = found["sha256"], hashlib.sha256(_canonical(body)).hexdigest()
        written = found["step"]
        listed = {name: (entry["bytes"], entry["sha256"]) for name, entry in found["files"].items()}
    except (ValueError, RecursionError):
        return f"{MANIFEST} ({len(manifest)} bytes) is not JSON"
    except (KeyError, TypeError, AttributeError):
        return f"{MANIFEST} lacks what a manifest has"
    if own != sealed:
        return f"{MANIFEST} does not have its own SHA-256"
    if written != step:
        return f"{MANIFEST} is of step {written}, but the folder of step {step}"
    differences = (_difference(name, listed.get(name), files.get(name)) for name in sorted({*listed, *files}))
    return next(filter(None, differences), f"{MANIFEST} is not written as manifests are")


def _difference(name: str, listed: tuple[Any, Any] | None, found: tuple[int, str] | None) -> str | None:
    if found is None:
        return f"{name} is not there"
    if listed is None:
        return f"{name} is not in {MANIFEST}; move it away"
    if listed[0] != found[0]:
        return f"{name} has {found[0]} bytes, but {MANIFEST} says {listed[0]}"
    return f"{name} does not have the SHA-256 that {MANIFEST} says" if listed[1] != found[1] else None
