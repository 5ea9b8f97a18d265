"""The sweep directory and its `sweep.json`: which trials there are, what they were asked for, and how each of them ended.

A trial counts as done when the manifest says so, which it does after the trial's files are safe on the disk. It has two hashes:
`asked_hash` of the configuration that was asked for, by which it is known again, and `config_hash` of the one that ran, where
`auto` has become a device, as its own record says.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from runner.config.overrides import key_of, values_of
from runner.errors import CheckpointError, ConfigError
from runner.runs.atomic import write_json
from runner.runs.directory import now

FILE = "sweep.json"

DONE = ("finished", "pruned")
"""States of trials that are not run again."""

ENDS = {"finished": "finished", "failed": "failed", "interrupted": "interrupted"}
"""Status of a run → state of a trial."""


class Manifest:
    """`sweep.json` of a directory, in memory; `save` writes it."""

    def __init__(self, directory: Path, values: dict[str, Any]) -> None:
        self.directory = directory
        self.values = values
        self.members: dict[int, dict[str, Any]] = {m["number"]: m for m in values["members"]}

    @staticmethod
    def create(directory: Path, values: Mapping[str, Any]) -> Manifest:
        """A new sweep directory with its manifest inside. Raises `ConfigError` where it cannot be made."""
        full = {"status": "running", "started": now(), "ended": None, "resumed": 0, **values, "members": []}
        fresh = directory.parent / f".{directory.name}.{secrets.token_hex(3)}"
        try:
            if directory.exists() and any(directory.iterdir()):
                raise FileExistsError(17, "it is there and not empty")
            directory.parent.mkdir(parents=True, exist_ok=True)
            fresh.mkdir()
            write_json(fresh / FILE, full)
            fresh.rename(directory)
        except (OSError, ValueError) as error:
            shutil.rmtree(fresh, ignore_errors=True)
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise ConfigError(
                f"`run_dir` must be a directory that can be made for the sweep, empty or new, but {directory} is not: {reason}; "
                "give another one"
            ) from None
        return Manifest(directory, full)

    @staticmethod
    def read(directory: Path) -> Manifest:
        """The manifest of a sweep. Raises `CheckpointError` where there is none to read."""
        path = directory / FILE
        if not path.is_file():
            raise CheckpointError(
                f"`resume` must be a sweep directory with -m, but {str(directory)!r} has no {FILE}; give the folder of a sweep, "
                "or leave out -m to go on with one run"
            )
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return Manifest(directory, {**values, "members": [dict(m) for m in values["members"]]})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise CheckpointError(
                f"{path} must be the manifest of a sweep, but cannot be read ({error}); restore it"
            ) from None

    def save(self) -> None:
        """Write it, whole or not at all. Raises OSError."""
        self.values["members"] = [self.members[number] for number in sorted(self.members)]
        write_json(self.directory / FILE, self.values)

    def enlist(self, members: Iterable[Mapping[str, Any]]) -> None:
        """Add trials that are new; those that are known must be the same. Raises `CheckpointError` where they are not."""
        problems = []
        for member in members:
            known = self.members.get(member["number"])
            if known is None:
                self.members[member["number"]] = {**member, "config_hash": None, "state": "waiting", "reason": None}
            elif known["asked_hash"] not in (None, member["asked_hash"]):
                problems.append(
                    f"trial {member['number']} of {self.directory} must be what it was, but its configuration is another one now; "
                    "restore the files of conf/, or start a new sweep"
                )
        if problems:
            raise CheckpointError(problems)

    def mark(self, numbers: Iterable[int], state: str, reason: str | None = None) -> None:
        """How some trials stand."""
        for number in numbers:
            self.members[number].update(state=state, reason=reason)

    def done(self, number: int) -> bool:
        """Whether a trial is not to be run again."""
        return number in self.members and self.members[number]["state"] in DONE

    def member_directory(self, number: int) -> Path:
        """Where a trial's run is."""
        return self.directory / str(number)

    def settle(self) -> None:
        """Take the state of trials that nobody has reported from their own records: other launchers' processes write those."""
        for path in self.directory.iterdir():
            if not path.name.isdigit():
                continue
            number = int(path.name)
            if self.done(number) and self.members[number]["config_hash"] is not None:
                continue
            if record := _json(path / "run.json"):
                self._take(number, record)
        self.mark([n for n, member in self.members.items() if member["state"] == "running"], "waiting")  # not begun

    def reconsider(self) -> None:
        """Trials that had finished, but whose results are gone, are to be run again."""
        gone = [n for n, member in self.members.items() if member["state"] == "finished" and not self.summary(n)]
        self.mark(gone, "waiting")

    def _take(self, number: int, record: Mapping[str, Any]) -> None:
        if number not in self.members:
            self.members[number] = {"number": number, **self._found(record)}
        member = self.members[number]
        member["config_hash"] = record.get("config_hash")
        if member["state"] in ("waiting", "running"):
            state = ENDS.get(str(record.get("status")), "interrupted")
            state = "interrupted" if state == "finished" and not self.summary(number) else state
            self.mark([number], state, record.get("reason"))

    def _found(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """The entry of a trial that only its own record tells of."""
        words = [word for word in record.get("overrides", []) if key_of(word) != "run_dir"]
        return {
            "values": values_of([word for word in words if key_of(word) not in self.fixed_keys]),
            "overrides": words,
            "asked_hash": None,
            "state": "waiting",
            "reason": None,
        }

    @property
    def fixed_keys(self) -> set[str]:
        """Keys and groups that have the same value in all trials."""
        return {key_of(word) for word in self.values["fixed"]}

    def summary(self, number: int) -> dict[str, Any]:
        """What a finished trial came to; nothing where it cannot be read."""
        return _json(self.member_directory(number) / "summary.json")

    def states(self) -> dict[str, int]:
        """How many trials are in each state."""
        found: dict[str, int] = {}
        for member in self.members.values():
            found[member["state"]] = found.get(member["state"], 0) + 1
        return found


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def place(name: str, run_dir: str | None) -> Path:
    """The directory of a new sweep."""
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    return Path(run_dir) if run_dir is not None else Path("runs", name, f"sweep_{stamp}_{secrets.token_hex(3)}")
