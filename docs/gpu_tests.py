"""Run the tests of a folder and append a line of JSON for each as it ends, so that a crash or a kill loses nothing.

    python docs/gpu_tests.py FILE FOLDER

A test that FILE names already is left out: the same command continues after a crash. The exit code is 3 if a failed test left
the device unusable, so that a new process must go on.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

CONTINUE = 3
"""Exit code that asks for a new process. pytest uses 3 for its own faults, after which a new process may help too."""
SECONDS = 100
"""Time limit of a test that has none of its own."""


class Journal:
    """Plugin of pytest that appends lines to a file: collected, started, test, failure and end."""

    def __init__(self, file: Path) -> None:
        self._file = file
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        self._begun = {record["name"] for record in map(json.loads, lines) if record["kind"] == "started"}
        self._reports: list[pytest.TestReport] = []
        self.unusable = False
        """Whether a failed test left the device unusable."""

    def write(self, kind: str, name: str, **values: Any) -> None:
        """Append a line."""
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, "name": name, **values}) + "\n")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Note a file that cannot be imported, or that skips all its tests."""
        if report.nodeid in self._begun or report.passed:
            return
        self.write("started", report.nodeid)
        outcome = "failed" if report.failed else "skipped"
        self.write("test", report.nodeid, outcome=outcome, seconds=0.0, detail=_detail(report, outcome))

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Note the tests, and leave out those that an earlier process has begun."""
        self.write("collected", "tests", names=[item.nodeid for item in items])
        items[:] = [item for item in items if item.nodeid not in self._begun]

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Note that a test starts."""
        self._reports = []
        self.write("started", nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep what is reported of the preparation, the call and the cleaning up of a test."""
        self._reports.append(report)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """Note how a test ended."""
        worst = min(self._reports, key=lambda report: ("failed", "skipped", "passed").index(report.outcome))
        seconds = sum(report.duration for report in self._reports)
        self.write("test", nodeid, outcome=worst.outcome, seconds=seconds, detail=_detail(worst, worst.outcome))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Any:
        """Note that no test is left, unless the session stops before."""
        result = yield
        if not self.unusable:
            self.write("end", "tests")
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        """Stop the session if a test fails and the device computes no longer: all further tests would fail."""
        result = yield
        if any(report.failed for report in self._reports) and not usable():
            self.unusable = True
            item.session.shouldstop = "the device computes no longer"
        return result


def _detail(report: pytest.CollectReport | pytest.TestReport, outcome: str) -> str:
    """Return the traceback and the output of what failed, the reason of what was skipped, and nothing of what passed."""
    if outcome == "failed":
        output = "".join(f"\n---- {title} ----\n{text[-3000:]}" for title, text in report.sections)
        return report.longreprtext + output
    if outcome == "skipped":
        reason = getattr(report, "wasxfail", None) or report.longrepr
        return str(reason[2] if isinstance(reason, tuple) else reason).removeprefix("Skipped: ")
    return ""


def usable() -> bool:
    """Whether the GPU still computes, if there is one: after some errors every further call in the process fails."""
    import torch

    with contextlib.suppress(Exception):
        return not torch.cuda.is_available() or torch.ones(2, device="cuda").sum().item() == 2
    return False


def main(arguments: Sequence[str]) -> int:
    """Run the tests; return pytest's exit code, or `CONTINUE`."""
    file, folder = arguments
    journal = Journal(Path(file))
    settings = ["addopts=", "filterwarnings=default", f"timeout={SECONDS}"]
    chosen = ["-v", "--tb=short", "--continue-on-collection-errors", "-p", "no:cacheprovider"]
    chosen += [word for text in settings for word in ("-o", text)]
    code = pytest.main([*chosen, folder], plugins=[journal])
    return CONTINUE if journal.unusable else int(code)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
