"""The sweep directory and its `sweep.json`: the trials, their overrides, and how each of them ended.

A trial is done when the manifest says so, which happens after its files are safe on the disk. It has two hashes. `asked_hash` is
of the requested configuration and identifies the trial when the sweep is resumed. `config_hash` is of the configuration that ran,
in which `auto` has become a device; it equals that in the trial's own record.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from runner.config.documents import FORMAT
from runner.config.files import is_folder
from runner.config.overrides import key_of, values_of
from runner.errors import CheckpointError, ConfigError
from runner.runs import directory as runs
from runner.runs.atomic import write_json
from runner.runs.directory import is_complete, lock, now, unlock
from runner.runs.records import SWEEP, read_record, read_summary, read_sweep

DONE = ("finished", "pruned")
"""States of trials that are not run again."""

STATES = {"finished": "finished", "failed": "failed", "interrupted": "interrupted"}
"""Status of a run that has ended → state of its trial."""


class Manifest:
    """The contents of a directory's `sweep.json`; `save` writes them. `members` has the trials by number."""

    def __init__(self, directory: Path, values: dict[str, Any]) -> None:
        self.directory = directory
        self.values = values
        self.members: dict[int, dict[str, Any]] = {m["number"]: m for m in values["members"]}

    @staticmethod
    def create(directory: Path, values: Mapping[str, Any]) -> Manifest:
        """Make a new sweep directory with a manifest. Raises `ConfigError` if it cannot be made."""
        full = {
            "format": FORMAT,
            "status": "running",
            "started": now(),
            "ended": None,
            "resumed": 0,
            **values,
            "members": [],
        }
        temporary = directory.parent / f".{directory.name}.{secrets.token_hex(3)}"
        try:
            if directory.exists() and any(directory.iterdir()):
                raise FileExistsError(17, "it exists and is not empty")
            directory.parent.mkdir(parents=True, exist_ok=True)
            temporary.mkdir()
            write_json(temporary / SWEEP, full)
            temporary.rename(directory)
        except (OSError, ValueError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise ConfigError(
                f"`run_dir` must be a new or empty directory for the sweep, got {directory}: {reason}; give another one"
            ) from None
        return Manifest(directory, full)

    @staticmethod
    def read(directory: Path) -> Manifest:
        """Read the manifest of a sweep. Raises `CheckpointError` if it is missing or cannot be read."""
        if not os.path.lexists(directory / SWEEP):
            raise CheckpointError(
                f"`resume` must be a sweep directory with -m, got {str(directory)!r} without {SWEEP}; give the directory of a "
                "sweep, or leave out -m to resume one run"
            )
        return Manifest(directory, read_sweep(directory))

    def save(self) -> None:
        """Write `sweep.json` atomically. Raises OSError."""
        self.values["members"] = [self.members[number] for number in sorted(self.members)]
        write_json(self.directory / SWEEP, self.values)

    def add(self, members: Iterable[Mapping[str, Any]]) -> None:
        """Add the entries of new trials. Raises `CheckpointError` if a known trial has another configuration now."""
        problems = []
        for member in members:
            known = self.members.get(member["number"])
            if known is None:
                self.members[member["number"]] = {**member, "config_hash": None, "state": "waiting", "reason": None}
            elif known["asked_hash"] not in (None, member["asked_hash"]):
                problems.append(
                    f"trial {member['number']} of {self.directory} must have the same configuration as before, but it has changed; "
                    "restore the files of conf/, or start a new sweep"
                )
        if problems:
            raise CheckpointError(problems)

    def mark(self, numbers: Iterable[int], state: str, reason: str | None = None) -> None:
        """Set the state of some trials, and the reason if they did not finish."""
        for number in numbers:
            self.members[number].update(state=state, reason=reason)

    def done(self, number: int) -> bool:
        """Whether a trial has ended and is not run again."""
        return number in self.members and self.members[number]["state"] in DONE

    def member_directory(self, number: int) -> Path:
        """Run directory of a trial."""
        return self.directory / str(number)

    def update_from_records(self) -> None:
        """Update the trials whose end was not reported from their run records, which processes of launchers write."""
        for path in self.directory.iterdir():
            if re.fullmatch("0|[1-9][0-9]{0,8}", path.name) is None or not is_folder(path):
                continue
            number = int(path.name)
            if self.done(number) and self.members[number]["config_hash"] is not None:
                continue
            with suppress(CheckpointError):
                self._update(number, read_record(path))
        # Trials that are still marked as running have not started: they have no record.
        self.mark([n for n, member in self.members.items() if member["state"] == "running"], "waiting")

    def rerun_lost(self) -> None:
        """Mark the finished trials whose results are gone as waiting, so that they are run again."""
        lost = [n for n, member in self.members.items() if member["state"] == "finished" and not self.summary(n)]
        self.mark(lost, "waiting")

    def _update(self, number: int, record: Mapping[str, Any]) -> None:
        if number not in self.members:
            self.members[number] = {"number": number, **self._entry(record)}
        member = self.members[number]
        member["config_hash"] = record.get("config_hash")
        if member["state"] in ("waiting", "running"):
            state = STATES.get(str(record.get("status")), "interrupted")
            complete = is_complete(record) and self.summary(number)
            state = "interrupted" if state == "finished" and not complete else state
            self.mark([number], state, record.get("reason"))

    def _entry(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Entry of a trial that is known from its run record only."""
        overrides = [override for override in record.get("overrides", []) if key_of(override) != "run_dir"]
        return {
            "values": values_of([override for override in overrides if key_of(override) not in self.fixed_keys]),
            "overrides": overrides,
            "asked_hash": None,
            "state": "waiting",
            "reason": None,
        }

    @property
    def fixed_keys(self) -> set[str]:
        """Keys and groups that have the same value in all trials."""
        return {key_of(override) for override in self.values["fixed"]}

    def summary(self, number: int) -> dict[str, Any]:
        """Summary of a finished trial; empty if it cannot be read."""
        try:
            return read_summary(self.member_directory(number)) or {}
        except CheckpointError:
            return {}

    def states(self) -> dict[str, int]:
        """State → number of trials in it."""
        counts: dict[str, int] = {}
        for member in self.members.values():
            counts[member["state"]] = counts.get(member["state"], 0) + 1
        return counts


def record_failure(path: Path, reason: str) -> None:
    """Record why the processes of a sweep, and of the trials that were running, have ended, unless they have done so themselves.

    Does nothing if another process uses the directory, or if that is impossible.
    """
    with suppress(CheckpointError, OSError):
        descriptor = lock(path)
        try:
            manifest = Manifest.read(path)
            if manifest.values["status"] == "running":
                for number in manifest.members:
                    runs.record_failure(manifest.member_directory(number), reason)
                manifest.update_from_records()
                manifest.values.update(status="failed", ended=now(), reason=reason)
                manifest.save()
        finally:
            unlock(descriptor)


def sweep_directory(name: str, run_dir: str | None) -> Path:
    """Return `run_dir`, or a new name below `runs/` if it is None."""
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    return Path(run_dir) if run_dir is not None else Path("runs", name, f"sweep_{stamp}_{secrets.token_hex(3)}")
