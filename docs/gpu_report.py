"""Try everything that is promised about GPUs on this machine, and write gpu_report.json and docs/gpu.md: `make gpu`.

    python docs/gpu_report.py [--part tests|bench|sweep] [--minutes 9] [--into FOLDER] [--rehearse]

Each part is a child process that appends a line of JSON to a file for everything it finds. This process never touches the GPU.
It follows the file, writes both files again whenever something was found, starts a child that crashed or hung again without
the test or case at which it did, and stops the part when its time is over. Exit code 0: everything passed; 1: something
failed, missed its bar or was cut off; 2: there is no GPU, or a package is missing, and nothing is written.

The report is {"format": 1, "parts": {name: part}}. A part has `began` (UTC), `command`, `facts` of the machine, `seconds`, `records` (the
lines of its child) and `unfinished` (why it was cut off, or null). `--part` keeps what the report has of other parts.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import zipfile
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from gpu_page import page, problems

ROOT = Path(__file__).parents[1]
WHEELS, SITE = ROOT / "wheels", ROOT / "build" / "gpu-site"
PACKAGES = {"hydra": "hydra_core", "omegaconf": "omegaconf", "antlr4": "antlr4_python3_runtime"}
"""Module → the name with which its wheel begins, of pure-Python packages that machines with torch often lack."""

WEIGHTS = {"tests": 5.0, "bench": 2.0, "sweep": 2.0}
"""Part → its share of the time, in the order in which they run. What a part leaves, the next ones may use."""
STALL_SECONDS = {"tests": 120.0, "bench": 240.0, "sweep": 240.0}
"""A child that has found nothing for so long hangs. The time limit of a test is shorter."""
SAVE_SECONDS = 2.0
"""Shortest time between two writings of both files while a part runs."""


class Refused(Exception):
    """Nothing can be tried on this machine; the message is a sentence."""


# ------------------------------------------------------------------------------------------------------------- the machine


def add_wheels(missing: Sequence[str], wheels: Path, site: Path) -> None:
    """Unpack the wheels of missing modules into a new folder `site`. Raises `Refused` if there is no wheel for one."""
    chosen = {module: sorted(wheels.glob(f"{PACKAGES[module]}-*.whl")) for module in missing}
    without = [module for module, files in chosen.items() if not files]
    if without:
        raise Refused(
            f"the packages {', '.join(without)} must be importable, or have a wheel in {wheels.name}/, and are not; "
            "run `make gpu-wheels` on a machine with a network"
        )
    shutil.rmtree(site, ignore_errors=True)
    for files in chosen.values():
        with zipfile.ZipFile(files[-1]) as archive:
            archive.extractall(site)


def missing_modules() -> list[str]:
    """Return the modules of `PACKAGES` that this Python cannot import."""
    return [module for module in PACKAGES if importlib.util.find_spec(module) is None]


def environment(environ: Mapping[str, str], unpacked: Path | None) -> dict[str, str]:
    """Return the environment of the children: it finds the runner, and the unpacked wheels if there are any."""
    folders = [str(ROOT / "src"), *([str(unpacked)] if unpacked is not None else []), environ.get("PYTHONPATH", "")]
    return {**environ, "PYTHONPATH": os.pathsep.join(filter(None, folders)), "PYTHONUNBUFFERED": "1"}


def machine(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the facts of this machine. Raises `Refused` if they cannot be found."""
    command = [sys.executable, str(ROOT / "docs" / "gpu_facts.py")]
    try:
        done = subprocess.run(command, env=dict(environ), capture_output=True, text=True, check=True, timeout=180)
        facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except subprocess.CalledProcessError as error:
        raise Refused(f"torch must be usable, but its process ended so: {error.stderr[-1000:].strip()}") from None
    except subprocess.TimeoutExpired:
        raise Refused("torch must be usable, but did not start within 180 seconds; check the driver") from None
    return facts


def refuse_without_gpu(facts: Mapping[str, Any]) -> None:
    """Raise `Refused` if torch finds no GPU."""
    if facts["gpu"] is None:
        raise Refused(
            f"a GPU must be visible to torch, and none is ({facts['problem']}); "
            "run this on a machine with one, or see `python -m runner doctor`"
        )


# -------------------------------------------------------------------------------------------------------------- the report


class Report:
    """The report and its two files."""

    def __init__(self, json_file: Path, page_file: Path) -> None:
        self._json_file, self._page_file = json_file, page_file
        self.parts: dict[str, dict[str, Any]] = {}
        with suppress(OSError, ValueError, KeyError):
            earlier = json.loads(json_file.read_text(encoding="utf-8"))
            self.parts = earlier["parts"] if earlier["format"] == 1 else {}

    def save(self) -> None:
        """Write both files. A kill leaves the old or the new ones."""
        values = {"format": 1, "parts": self.parts}
        for file, text in ((self._json_file, json.dumps(values, indent=1) + "\n"), (self._page_file, page(values))):
            file.parent.mkdir(parents=True, exist_ok=True)
            beside = file.with_name(f".{file.name}.new")
            beside.write_text(text, encoding="utf-8")
            beside.replace(file)


def records(file: Path) -> list[dict[str, Any]]:
    """Return the lines of a child's file, without the paths of this machine. A line that is not whole is left out."""
    found = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        with suppress(ValueError):
            found.append(json.loads(line))
    for record in found:
        record.update({key: without_paths(value) for key, value in record.items() if isinstance(value, str)})
    return found


def without_paths(text: str) -> str:
    """Return a text in which paths start at the checkout, at a package, or at TMP."""
    text = text.replace(f"{ROOT}/", "")
    text = re.sub(r"[^\s\"'(]*/(?:site|dist)-packages/", "", text)
    text = re.sub(r"[^\s\"'(]*/(lib/python3\.\d+/)", r"\1", text)
    return re.sub(rf"{re.escape(tempfile.gettempdir())}/[^\s/\"']*", "TMP", text)


# ------------------------------------------------------------------------------------------------------------- the children


@dataclass(frozen=True)
class Child:
    """A command that appends what it finds to a file, and continues there when it is started again."""

    command: tuple[str, ...]
    environment: Mapping[str, str]
    file: Path
    stall_seconds: float

    def attempt(self, ends: float, found: Callable[[], None]) -> str:
        """Run the command until it exits, hangs, or the time is `ends`. Return why it ended, as the end of a sentence.

        `found` is called after lines were appended.
        """
        process = subprocess.Popen(
            self.command, cwd=ROOT, env=dict(self.environment), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
        last_lines: deque[str] = deque(maxlen=40)
        echo = threading.Thread(target=_echo, args=(process.stdout, last_lines), daemon=True)
        echo.start()
        try:
            reason = self._watch(process, ends, found)
        finally:
            _stop(process)
            echo.join(timeout=5)
            self._drop_cut_line()
        return f"{reason}; its last lines:\n{''.join(last_lines)}"

    def _watch(self, process: subprocess.Popen[str], ends: float, found: Callable[[], None]) -> str:
        size, grew = -1, time.monotonic()
        while process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.5)
            now, new_size = time.monotonic(), self.file.stat().st_size if self.file.exists() else 0
            if new_size != size:
                size, grew = new_size, now
                found()
            if now > ends:
                return "it ran until its time was over"
            if now - grew > self.stall_seconds:
                return f"it found nothing for {self.stall_seconds:g} seconds"
        code = process.returncode
        return f"it ended by {signal.Signals(-code).name}" if code < 0 else f"it ended with exit code {code}"

    def note(self, kind: str, name: str, **values: Any) -> None:
        """Append a line for the child, which cannot do it itself any more."""
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, "name": name, **values}) + "\n")

    def _drop_cut_line(self) -> None:
        """Remove a last line that a kill has cut off: the child reads the file when it is started again."""
        content = self.file.read_bytes() if self.file.exists() else b""
        if content and not content.endswith(b"\n"):
            self.file.write_bytes(content[: content.rfind(b"\n") + 1])


def _echo(stream: Any, last_lines: deque[str]) -> None:
    with stream:
        for line in stream:
            last_lines.append(line)
            sys.stdout.write(line)
            sys.stdout.flush()


def _stop(process: subprocess.Popen[str]) -> None:
    """End a process and all that it has started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=5)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def follow(child: Child, ends: float, found: Callable[[], None]) -> str | None:
    """Run a child, again after each crash, until it has tried everything or the time is `ends`.

    Return None, or why it was cut off. The test or case at which it crashed or hung is noted as failed.
    """
    while True:
        begun = _begun(child.file)
        reason = child.attempt(ends, found)
        lines = records(child.file)
        if any(record["kind"] == "end" for record in lines):
            return None
        summary = reason.partition("; its last lines:")[0]
        running = _running(lines)
        if time.monotonic() > ends:
            return "its time was over" + (f" while {running} ran" if running is not None else "")
        if running is not None:
            child.note("failure", running, detail=f"The process was cut off here: {reason}")
        if len(_begun(child.file)) == len(begun):
            if running is None:
                child.note("failure", "process", detail=f"The process began nothing: {reason}")
            return f"its process began nothing new, {summary}"


def _begun(file: Path) -> set[str]:
    return {record["name"] for record in records(file) if record["kind"] == "started"}


def _running(lines: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the test or case that has begun last, if nothing says how it ended."""
    started = [i for i, record in enumerate(lines) if record["kind"] == "started"]
    if not started or any(record["kind"] in ("test", "failure") for record in lines[started[-1] :]):
        return None
    return str(lines[started[-1]]["name"])


# ---------------------------------------------------------------------------------------------------------------- the parts


def part_command(name: str, file: Path, seconds: float, rehearse: bool) -> tuple[str, ...]:
    """Return the command of a part that has so many seconds."""
    if name == "tests":
        return (sys.executable, str(ROOT / "docs" / "gpu_tests.py"), str(file), "tests/gpu")
    small = ["--device", "cpu", "--quick"] if rehearse else []
    # The margin is for the start of the process, and for a last case that takes longer than expected.
    limit = max(seconds - 20, 1.0)
    return (sys.executable, "-m", "benchmarks.gpu", name, "--seconds", f"{limit:.0f}", "--out", str(file), *small)


def run_part(child: Child, ends: float, part: dict[str, Any], save: Callable[[], None]) -> None:
    """Run a part and keep its records in `part`, also when this process is stopped or fails."""
    began = saved = time.monotonic()
    part["unfinished"] = "the report was stopped"

    def keep() -> None:
        part.update(records=records(child.file), seconds=round(time.monotonic() - began))

    def found(*, now: bool = False) -> None:
        nonlocal saved
        if now or time.monotonic() - saved > SAVE_SECONDS:
            keep()
            try:
                save()
            except Exception:  # such as a full disk: the child must go on
                traceback.print_exc()
            saved = time.monotonic()

    try:
        part["unfinished"] = follow(child, ends, found)
    except Exception as error:  # the next part must run
        part["unfinished"] = f"{type(error).__name__}: {error}"
    finally:
        found(now=True)


@dataclass(frozen=True)
class Plan:
    """Work to do: the parts, when they must have ended (`time.monotonic`), their environment, and the command for the page."""

    parts: Sequence[str]
    ends: float
    environment: Mapping[str, str]
    command: str
    rehearse: bool = False


def run_parts(plan: Plan, report: Report, facts: Mapping[str, Any]) -> list[str]:
    """Run the parts one after another, and return what was no success."""
    begins, weight, found = time.monotonic(), 0.0, []
    with tempfile.TemporaryDirectory() as folder:
        for name in plan.parts:
            weight += WEIGHTS[name]
            ends = begins + (plan.ends - begins) * weight / sum(WEIGHTS[part] for part in plan.parts)
            file = Path(folder) / f"{name}.jsonl"
            command = part_command(name, file, ends - time.monotonic(), plan.rehearse)
            child = Child(command, plan.environment, file, STALL_SECONDS[name])
            part: dict[str, Any] = {
                "began": datetime.now(timezone.utc).isoformat(timespec="seconds"), "command": plan.command,
                "facts": dict(facts), "seconds": 0, "records": [], "unfinished": None,
            }  # fmt: skip
            report.parts[name] = part
            print(f"==== {name}: at most {ends - time.monotonic():.0f} s", flush=True)
            run_part(child, ends, part, report.save)
            found += [f"{name}: {problem}" for problem in problems(part)]
    return found


# ------------------------------------------------------------------------------------------------------------- command line


def options(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the command line. Exits with 2 if it cannot be read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=list(WEIGHTS), help="run this part only; all parts by default")
    parser.add_argument("--minutes", type=float, default=9.0, help="time for all that runs")
    parser.add_argument("--into", type=Path, help="folder for both files; without it docs/gpu.md is written")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, with tiny sizes; needs --into")
    chosen = parser.parse_args(arguments)
    if chosen.rehearse and chosen.into is None:
        parser.error("--rehearse needs --into FOLDER: its figures are not for docs/gpu.md")
    return chosen


def shown_command(chosen: argparse.Namespace) -> str:
    """Return the command for the page, without the folder, which is of this machine only."""
    words = ["python docs/gpu_report.py --rehearse"] if chosen.rehearse else ["make gpu"]
    words += [f"PART={chosen.part}"] if chosen.part else []
    return " ".join([*words, f"MINUTES={chosen.minutes:g}"])


def main(arguments: Sequence[str]) -> int:
    """Run the chosen parts, print what was no success, and return the exit code."""
    chosen = options(arguments)
    ends = time.monotonic() + chosen.minutes * 60
    try:
        missing = missing_modules()
        if missing:
            add_wheels(missing, WHEELS, SITE)
        environ = environment(os.environ, SITE if missing else None)
        facts = machine(environ)
        if not chosen.rehearse:
            refuse_without_gpu(facts)
    except Refused as refusal:
        sys.stderr.write(f"error: {refusal}\n")
        return 2
    if chosen.rehearse:
        environ = {**environ, "RUNNER_TEST_DEVICE": "cpu"}
        facts["gpu"] = "none: a rehearsal on the CPU"
    print("\n".join(f"{name}: {fact}" for name, fact in facts.items()), flush=True)
    folder = chosen.into
    files = (
        (folder / "gpu_report.json", folder / "gpu.md") if folder else (ROOT / "gpu_report.json", ROOT / "docs/gpu.md")
    )
    report = Report(*files)
    signal.signal(signal.SIGTERM, _exit_in_order)
    parts = [chosen.part] if chosen.part else list(WEIGHTS)
    plan = Plan(parts, ends, environ, shown_command(chosen), chosen.rehearse)
    found = run_parts(plan, report, facts)
    print("\n".join(["", *found, f"{len(found)} problems; see {files[1].name} and {files[0].name}"]), flush=True)
    return 1 if found else 0


def _exit_in_order(number: int, frame: FrameType | None) -> NoReturn:
    """Exit so that the child is stopped and both files are written."""
    raise SystemExit(128 + number)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
