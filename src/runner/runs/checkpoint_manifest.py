"""The manifest of a checkpoint: the list of its files, which reveals a damaged, missing, exchanged or unknown file.

    {"files": {"state.pt": {"bytes": 1234, "sha256": "5d41…"}}, "sha256": "9f2c…", "step": 20}

The second "sha256" is that of the manifest without it. The text is canonical: one content has one text.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from runner.config.documents import parse_json, parse_object
from runner.config.files import MIB, open_to_read

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = MIB
"""Largest manifest, of some five thousand files."""

Files: TypeAlias = Mapping[str, tuple[int, str]]
"""File name → size in bytes and SHA-256."""


def manifest_of(step: int, files: Files) -> bytes:
    """Return the manifest of a checkpoint of a step with these files."""
    body = {"step": step, "files": {name: {"bytes": size, "sha256": digest} for name, (size, digest) in files.items()}}
    return _canonical({**body, "sha256": hashlib.sha256(_canonical(body)).hexdigest()})


def _canonical(value: Any) -> bytes:
    """Return the only accepted text of a value: any other text means that bytes have changed."""
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def size_and_hash(data: bytes) -> tuple[int, str]:
    """Return size and SHA-256 of data."""
    return len(data), hashlib.sha256(data).hexdigest()


def size_and_hash_of(path: Path) -> tuple[int, str]:
    """Return size and SHA-256 of a file, which need not fit in memory. Raises OSError."""
    digest, size = hashlib.sha256(), 0
    with open_to_read(path) as file:
        while block := file.read(2**20):
            digest.update(block)
            size += len(block)
    return size, digest.hexdigest()


def size_of(path: Path) -> int:
    """Return the size of a regular file. Raises OSError, also for a file of another kind."""
    with open_to_read(path) as file:
        return os.fstat(file.fileno()).st_size


def listed_sizes(manifest: bytes) -> dict[str, int]:
    """Return the size of each file that a manifest lists; empty for a manifest that cannot be read."""
    try:
        sizes = {name: entry["bytes"] for name, entry in parse_object(manifest)["files"].items()}
    except (ValueError, LookupError, TypeError, AttributeError):
        return {}
    return {name: size for name, size in sizes.items() if type(size) is int and size >= 0}


def mismatch(step: int, manifest: bytes, files: Files) -> str | None:
    """Return how a manifest differs from the right one of this step and these files; None if it does not."""
    if manifest == manifest_of(step, files):
        return None
    try:
        content = parse_json(manifest)
        body = {name: value for name, value in content.items() if name != "sha256"}
        recorded, computed = content["sha256"], hashlib.sha256(_canonical(body)).hexdigest()
        recorded_step = content["step"]
        listed = {name: (entry["bytes"], entry["sha256"]) for name, entry in content["files"].items()}
    except ValueError:
        return f"{MANIFEST} ({len(manifest)} bytes) is not JSON"
    except (KeyError, TypeError, AttributeError):
        return f"{MANIFEST} lacks a required entry"
    if recorded != computed:
        return f"{MANIFEST} does not match its own SHA-256"
    if recorded_step != step:
        return f"{MANIFEST} is of step {recorded_step}, but its folder of step {step}"
    differences = (_difference(name, listed.get(name), files.get(name)) for name in sorted({*listed, *files}))
    return next(filter(None, differences), f"{MANIFEST} is not in canonical form")


def _difference(name: str, listed: tuple[Any, Any] | None, actual: tuple[int, str] | None) -> str | None:
    if actual is None:
        return f"{name} is missing"
    if listed is None:
        return f"{name} is not in {MANIFEST}; move it away"
    if listed[0] != actual[0]:
        return f"{name} has {actual[0]} bytes, but {MANIFEST} says {listed[0]}"
    return f"{name} does not match its SHA-256 in {MANIFEST}" if listed[1] != actual[1] else None
