"""`make gpu`: its arguments, its children that crash, hang or are killed, the report and the page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import gpu_facts
import gpu_report
import pytest
from gpu_page import HEAD, HOW, page, problems
from gpu_report import ROOT, Child, Refused, Report, follow, records

FACTS = {
    "gpu": "Made-up GPU",
    "torch": "2.11.0",
    "packages": {"numpy": "2.5"},
    "environment": {"CUDA_VISIBLE_DEVICES": "0"},
}

CHILD = """
import json, os, signal, sys
file, kind = sys.argv[1:]
lines = open(file).read().splitlines() if os.path.exists(file) else []
begun = {r["name"] for r in map(json.loads, filter(None, lines)) if r["kind"] == "started"}
def write(kind, name, **values):
    with open(file, "a") as f:
        f.write(json.dumps({"kind": kind, "name": name, **values}) + "\\n")
if kind == "broken":
    sys.exit("no such module")
write("collected", "tests", names=["a", "b", "c"])
for name in "abc":
    if name in begun:
        continue
    write("started", name)
    if name == "b":
        if kind == "killed":
            with open(file, "a") as f:
                f.write('{"kind": "te')  # a line that is cut off
            print("about to die", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "hangs":
            signal.pause()
        if kind == "terminates":
            os.kill(os.getppid(), signal.SIGTERM)
            signal.pause()
    write("test", name, outcome="passed", seconds=1.0, detail="")
write("end", "tests")
"""
"""A child with three tests. With the kind "killed" or "hangs" it ends in the middle of the second one."""


def child(folder: Path, kind: str, stall: float = 60) -> Child:
    file = folder / "lines.jsonl"
    return Child((sys.executable, "-c", CHILD, str(file), kind), {}, file, stall)


def outcomes(file: Path) -> list[tuple[str, str]]:
    return [(record["kind"], record["name"]) for record in records(file) if record["kind"] in ("test", "failure")]


# -------------------------------------------------------------------------------------------------------------- arguments


def test_the_parts_and_the_time_can_be_chosen() -> None:
    chosen = gpu_report.options([])
    assert (chosen.part, chosen.minutes, chosen.into, chosen.rehearse) == (None, 9.0, None, False)
    chosen = gpu_report.options(["--part", "bench", "--minutes", "2.5", "--into", "there"])
    assert (chosen.part, chosen.minutes, chosen.into) == ("bench", 2.5, Path("there"))
    assert gpu_report.shown_command(chosen) == "make gpu PART=bench MINUTES=2.5"


@pytest.mark.parametrize("arguments", [["--part", "other"], ["--minutes", "long"], ["--rehearse"]])
def test_a_command_line_that_cannot_be_read_is_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refusal:
        gpu_report.options(arguments)
    assert refusal.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_each_part_is_a_command_of_this_python() -> None:
    tests = gpu_report.part_command("tests", Path("lines"), 300, rehearse=False)
    assert tests == (sys.executable, str(ROOT / "docs/gpu_tests.py"), "lines", "tests/gpu")
    bench = gpu_report.part_command("bench", Path("lines"), 120, rehearse=False)
    assert bench[1:] == ("-m", "benchmarks.gpu", "bench", "--seconds", "100", "--out", "lines")
    rehearsed = gpu_report.part_command("sweep", Path("lines"), 5, rehearse=True)
    assert rehearsed[3:] == ("sweep", "--seconds", "1", "--out", "lines", "--device", "cpu", "--quick")


def test_without_a_gpu_one_sentence_is_printed_and_nothing_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(gpu_report, "machine", lambda environ: {"gpu": None, "problem": "torch finds no GPU"})
    assert gpu_report.main(["--into", str(tmp_path / "there")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        "error: a GPU must be visible to torch, and none is (torch finds no GPU); "
        "run this on a machine with one, or see `python -m runner doctor`\n"
    )
    assert not (tmp_path / "there").exists()


def test_a_torch_that_crashes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(Refused, match="torch must be usable"):
        gpu_report.machine({})


def make(target: str, *variables: str) -> str:
    """What `make` would do for a target of this project."""
    # `make test` hands its own settings to the make inside, which would then print its folder too.
    environment = {
        name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")
    }
    command = ["make", "-n", target, *variables]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_make_gpu_needs_no_venv_and_passes_its_variables_on() -> None:
    assert make("gpu", "VENV=/nowhere", "PYTHON=python9").split() == ["python9", "docs/gpu_report.py"]
    command = make("gpu", "VENV=/nowhere", "PYTHON=python9", "PART=bench", "MINUTES=4", "INTO=there")
    assert command.split()[2:] == ["--part", "bench", "--minutes", "4", "--into", "there"]


# ----------------------------------------------------------------------------------------------------------------- machine


def wheel(folder: Path, name: str, file: str) -> None:
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / name, "w") as archive:
        archive.writestr(file, "")


def test_the_wheels_of_missing_modules_only_are_unpacked(tmp_path: Path) -> None:
    wheels, site = tmp_path / "wheels", tmp_path / "site"
    wheel(wheels, "hydra_core-1.3.8-py3-none-any.whl", "hydra/__init__.py")
    wheel(wheels, "omegaconf-2.3.1-py3-none-any.whl", "omegaconf/__init__.py")
    (site / "old").mkdir(parents=True)
    gpu_report.add_wheels(["hydra"], wheels, site)
    assert [path.name for path in site.iterdir()] == ["hydra"]


def test_a_missing_module_without_a_wheel_is_refused(tmp_path: Path) -> None:
    wheel(tmp_path / "wheels", "omegaconf-2.3.1-py3-none-any.whl", "omegaconf/__init__.py")
    with pytest.raises(Refused, match=r"hydra, antlr4 must be importable, .* `make gpu-wheels`"):
        gpu_report.add_wheels(["hydra", "omegaconf", "antlr4"], tmp_path / "wheels", tmp_path / "site")
    assert not (tmp_path / "site").exists()


def test_this_python_lacks_none_of_the_modules() -> None:
    assert gpu_report.missing_modules() == []


def test_the_children_find_the_runner_the_wheels_and_what_was_on_the_path() -> None:
    path = gpu_report.environment({"PYTHONPATH": "/mine", "A": "b"}, Path("/site"))
    assert path == {"PYTHONPATH": f"{ROOT / 'src'}:/site:/mine", "A": "b", "PYTHONUNBUFFERED": "1"}
    assert gpu_report.environment({}, None)["PYTHONPATH"] == str(ROOT / "src")


def test_the_facts_name_versions_masks_and_why_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu_facts, "DRIVERS", (["/no/such/program"], [sys.executable, "-c", "print('580.1')"]))
    facts = gpu_facts.facts({"CUDA_VISIBLE_DEVICES": "3", "HOME": "/root"})
    assert (facts["gpu"], facts["problem"]) == (None, "torch finds no CUDA or ROCm GPU")
    assert (facts["torch"], facts["driver"]) == (str(torch.__version__), "580.1")
    assert facts["environment"] == {"CUDA_VISIBLE_DEVICES": "3"}
    assert {"numpy", "hydra-core"} <= facts["packages"].keys()


def test_a_report_has_no_paths_of_the_machine(tmp_path: Path) -> None:
    text = f'File "{ROOT}/src/runner/cli.py", File "/x/y/lib/python3.12/dist-packages/torch/a.py", "/x/lib/python3.12/runpy.py", {tmp_path}'
    shown = gpu_report.without_paths(text)
    assert shown.startswith('File "src/runner/cli.py", File "torch/a.py", "lib/python3.12/runpy.py", TMP')
    assert "/x" not in shown


# ---------------------------------------------------------------------------------------------------------------- children


def test_a_child_that_tries_everything_is_followed_to_its_end(tmp_path: Path) -> None:
    found: list[int] = []
    assert follow(child(tmp_path, "good"), time.monotonic() + 60, lambda: found.append(1)) is None
    assert outcomes(tmp_path / "lines.jsonl") == [("test", "a"), ("test", "b"), ("test", "c")]


def test_a_killed_child_goes_on_after_the_test_that_killed_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert follow(child(tmp_path, "killed"), time.monotonic() + 60, lambda: None) is None
    file = tmp_path / "lines.jsonl"
    assert outcomes(file) == [("test", "a"), ("failure", "b"), ("test", "c")]
    (failure,) = (record for record in records(file) if record["kind"] == "failure")
    assert "it ended by SIGKILL" in failure["detail"]
    assert "about to die" in failure["detail"]
    assert "about to die" in capsys.readouterr().out


def test_a_child_that_hangs_is_stopped_and_goes_on(tmp_path: Path) -> None:
    assert follow(child(tmp_path, "hangs", stall=0.2), time.monotonic() + 60, lambda: None) is None
    assert outcomes(tmp_path / "lines.jsonl") == [("test", "a"), ("failure", "b"), ("test", "c")]


def test_a_child_is_stopped_when_the_time_is_over(tmp_path: Path) -> None:
    hanging = child(tmp_path, "hangs")
    # The child starts within the half second after which the time is looked at, or it has begun nothing.
    reason = follow(hanging, time.monotonic() - 1, lambda: None)
    assert reason in ("its time was over", "its time was over while b ran")
    assert [kind for kind, _ in outcomes(hanging.file)] in ([], ["test"])


def test_a_child_that_begins_nothing_is_not_started_for_ever(tmp_path: Path) -> None:
    reason = follow(child(tmp_path, "broken"), time.monotonic() + 60, lambda: None)
    assert reason == "its process began nothing new, it ended with exit code 1"
    (failure,) = records(tmp_path / "lines.jsonl")
    assert "no such module" in failure["detail"]


def test_the_tests_of_a_folder_are_noted_one_by_one_and_continue_after_a_kill(tmp_path: Path) -> None:
    folder, file = tmp_path / "tests", tmp_path / "lines.jsonl"
    folder.mkdir()
    (folder / "test_a.py").write_text(
        "import os, pytest, signal\n"
        "def test_good(): pass\n"
        "def test_bad():\n    print('seen')\n    assert 1 == 2\n"
        "def test_fatal(): os.kill(os.getpid(), signal.SIGKILL)\n"
        "def test_left(): pytest.skip('no second GPU')\n"
        "@pytest.fixture\ndef broken(): raise OSError('no room')\n"
        "def test_prepared(broken): pass\n"
    )
    (folder / "test_b.py").write_text("import pytest\npytest.skip('not here', allow_module_level=True)\n")
    (folder / "test_c.py").write_text("import no_such_module\n")
    command = (sys.executable, str(ROOT / "docs/gpu_tests.py"), str(file), str(folder))
    tests = Child(command, gpu_report.environment({}, None), file, 60)
    assert follow(tests, time.monotonic() + 60, lambda: None) is None
    found = {
        record["name"].rpartition("/")[2]: record for record in records(file) if record["kind"] in ("test", "failure")
    }
    assert {name: record.get("outcome", "killed") for name, record in found.items()} == {
        "test_a.py::test_good": "passed",
        "test_a.py::test_bad": "failed",
        "test_a.py::test_fatal": "killed",
        "test_a.py::test_left": "skipped",
        "test_a.py::test_prepared": "failed",
        "test_b.py": "skipped",
        "test_c.py": "failed",
    }
    assert "assert 1 == 2" in found["test_a.py::test_bad"]["detail"]
    assert "seen" in found["test_a.py::test_bad"]["detail"]
    assert "no room" in found["test_a.py::test_prepared"]["detail"]
    assert (found["test_a.py::test_left"]["detail"], found["test_b.py"]["detail"]) == ("no second GPU", "not here")
    assert "no_such_module" in found["test_c.py"]["detail"]
    names = [record["name"] for record in records(file) if record["kind"] == "started"]
    assert len(names) == len(set(names)) == len(found)


# ------------------------------------------------------------------------------------------------------------------ report


def run_parts(folder: Path, kinds: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> tuple[Report, list[str]]:
    """Run made-up children, each of a kind, as parts."""
    monkeypatch.setattr(
        gpu_report, "part_command", lambda name, file, *_: (sys.executable, "-c", CHILD, str(file), kinds[name])
    )
    report = Report(folder / "gpu_report.json", folder / "gpu.md")
    plan = gpu_report.Plan(list(kinds), time.monotonic() + 60, {}, "make gpu")
    return report, gpu_report.run_parts(plan, report, FACTS)


def test_all_parts_run_and_the_report_is_complete_when_one_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, found = run_parts(tmp_path, {"tests": "good", "bench": "broken", "sweep": "killed"}, monkeypatch)
    assert found == [
        "bench: failed: process",
        "bench: cut off: its process began nothing new, it ended with exit code 1",
        "sweep: failed: b",
    ]
    parts = json.loads((tmp_path / "gpu_report.json").read_text())["parts"]
    assert list(parts) == ["tests", "bench", "sweep"]
    assert parts["tests"]["unfinished"] is None
    text = (tmp_path / "gpu.md").read_text()
    assert "3 passed, 0 failed, 0 skipped" in text
    assert "no such module" in text
    assert "about to die" in text


def test_a_part_keeps_what_the_others_found_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_parts(tmp_path, {"sweep": "broken"}, monkeypatch)
    report, found = run_parts(tmp_path, {"tests": "good"}, monkeypatch)
    assert found == []
    assert sorted(report.parts) == ["sweep", "tests"]
    assert "no such module" in (tmp_path / "gpu.md").read_text()


def test_an_earlier_report_that_cannot_be_read_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gpu_report.json").write_text("{")
    report, _ = run_parts(tmp_path, {"tests": "good"}, monkeypatch)
    assert list(report.parts) == ["tests"]


def test_a_fault_of_the_report_itself_does_not_stop_the_next_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(gpu_report, "follow", fail)
    report, found = run_parts(tmp_path, {"tests": "good", "bench": "good"}, monkeypatch)
    assert found == [f"{part}: cut off: OSError: the disk is full" for part in ("tests", "bench")]
    assert list(report.parts) == ["tests", "bench"]


def test_a_report_that_cannot_be_written_does_not_stop_what_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(Report, "save", fail)
    monkeypatch.setattr(gpu_report, "SAVE_SECONDS", 0.0)
    report, found = run_parts(tmp_path, {"tests": "good", "bench": "good"}, monkeypatch)
    assert found == []
    assert all(len(part["records"]) == 8 for part in report.parts.values())
    assert "the disk is full" in capsys.readouterr().err


def test_a_sigterm_in_the_middle_loses_nothing(tmp_path: Path) -> None:
    script = f"""
import sys
import gpu_report
gpu_report.machine = lambda environ: {FACTS!r}
gpu_report.part_command = lambda name, file, *_: (sys.executable, "-c", {CHILD!r}, str(file), "terminates")
raise SystemExit(gpu_report.main(["--part", "tests", "--into", {str(tmp_path)!r}]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], env={"PYTHONPATH": str(ROOT / "docs")}, capture_output=True, text=True,
        check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 143, done.stderr
    (part,) = json.loads((tmp_path / "gpu_report.json").read_text())["parts"].values()
    assert part["unfinished"] == "the report was stopped"
    text = (tmp_path / "gpu.md").read_text()
    assert "The part was cut off: the report was stopped." in text
    assert "1 passed, 0 failed, 0 skipped" in text
    assert "* the part was cut off while it ran (`b`)" in text
    assert "* the part was cut off before it began (`c`)" in text


# -------------------------------------------------------------------------------------------------------------------- page


def part(*lines: dict[str, Any], unfinished: str | None = None) -> dict[str, Any]:
    return {"began": "2026-11-27T10:00:00+00:00", "command": "make gpu", "facts": FACTS, "seconds": 9, "records": list(lines),
            "unfinished": unfinished}  # fmt: skip


def test_the_page_has_the_machine_each_failure_and_each_reason() -> None:
    lines = [
        {"kind": "test", "name": "a", "outcome": "passed", "seconds": 1.5, "detail": ""},
        {"kind": "test", "name": "b", "outcome": "failed", "seconds": 1.0, "detail": "Traceback\n```\nE assert"},
        *({"kind": "test", "name": f"s{i}", "outcome": "skipped", "seconds": 0, "detail": "no second GPU"} for i in range(12)),
    ]  # fmt: skip
    text = page({"parts": {"tests": part(*lines)}})
    assert text.startswith(HEAD)
    assert text.endswith(HOW)
    assert "| GPU | Made-up GPU |" in text
    assert "| `CUDA_VISIBLE_DEVICES` | 0 |" in text
    assert "**Problems: 1.**" in text
    assert "1 passed, 1 failed, 12 skipped; 2 s in tests." in text
    assert "### Failed: `b`\n\n~~~~text\nTraceback\n```\nE assert\n~~~~" in text
    assert "* no second GPU (`s0`," in text
    assert "`s9` and 2 more)" in text
    assert text.count("This part has not run.") == 2


def test_the_page_has_every_figure_with_its_bar_and_what_was_not_run() -> None:
    figure = {"kind": "figure", "unit": "times", "note": "a | b"}
    lines: list[dict[str, Any]] = [
        {**figure, "name": "one", "value": 6.0, "bar": "at least 5", "met": True},
        {**figure, "name": "two", "value": 1.2, "bar": "at most 1.05", "met": False},
        {**figure, "name": "three", "value": 12345.6, "bar": None, "met": None},
        {"kind": "skipped", "name": "four", "reason": "no time left"},
    ]
    report = {"parts": {"bench": part(*lines), "sweep": part(lines[0])}}
    text = page(report)
    assert "| one | 6 | times | at least 5 | met | a \\| b |" in text
    assert "| two | 1.2 | times | at most 1.05 | **missed** | a \\| b |" in text
    assert "| three | 1.235e+04 | times |  |  | a \\| b |" in text
    assert "* no time left (`four`)" in text
    assert problems(report["parts"]["bench"]) == ["missed its bar: two"]
    assert problems(report["parts"]["sweep"]) == []
    assert "**Problems: none.**" in text


def test_the_page_of_the_project_was_written_by_the_program() -> None:
    """Fix with `make gpu`; where nothing has run on a GPU, with the page of an empty report."""
    text = (ROOT / "docs/gpu.md").read_text(encoding="utf-8")
    assert text == page({"parts": {}}) or (text.startswith(HEAD) and text.endswith(HOW) and "| GPU |" in text)
