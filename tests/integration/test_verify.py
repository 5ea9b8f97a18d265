"""`verify` with real processes: equal bits, injected faults that it must report, and input that it refuses."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import faults
import runner
from runner import cli
from runner.runs import checkpoint

QUICK = ["device=cpu", "device.threads=1", "record.plots=false"]
LINE = ["+experiment=linreg", *QUICK]

BIT = """
import os, sys
if os.environ.get("PART"):
    import torch
    from runner.runs import checkpoint

    load = checkpoint.load

    def flipped(folder, *fault):
        # As if the state had been saved with another bit: its manifest is valid.
        loaded = load(folder, *fault)
        if loaded is not None:
            loaded.state["model"]["weight"].view(torch.int32)[0, 0] ^= 1
        return loaded

    checkpoint.load = flipped
"""
"""Module that each process of a test imports first if the test puts it on the path."""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the temporary folders of `verify` into a folder of the test, which can then see what is left."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr(tempfile, "tempdir", None)


def verify(capsys: pytest.CaptureFixture[str], code: int, *arguments: str) -> list[str]:
    """Run `verify`, check its exit code and return the lines that it prints."""
    capsys.readouterr()
    result = cli.main(["verify", *arguments])
    out = capsys.readouterr()
    assert result == code, out
    return (out.err if code == 2 else out.out).splitlines()


def kept() -> list[Path]:
    return list(Path("temporary").glob("runner-verify-*"))


def check_kept(lines: list[str]) -> None:
    """Check that the last lines name the kept folder and a `diverge` command that works."""
    (folder,) = kept()
    assert lines[-2] == f"kept     {folder.absolute()}"
    assert re.fullmatch(r"look     python -m runner diverge \S+ \S+", lines[-1])
    assert cli.main(lines[-1].split()[4:]) == 1


# --------------------------------------------------------------------------------------------------------------- rerun


def write_table(rows: int) -> None:
    Path("table.csv").write_text("".join(["x,y\n", *(f"{x},{2 * x + x % 3}\n" for x in range(rows))]))


@pytest.fixture
def run() -> Path:
    write_table(20)
    arguments = [*QUICK, "data=csv", "data.path=table.csv", "data.target=y", "update=manual", "optimizer.lr=1e-4"]
    return runner.run(None, [*arguments, "train.steps=10", "record.every_steps=1", "run_dir=first"]).directory


def test_a_repeated_run_is_the_same_and_nothing_is_kept(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "torch": "2.0.0"}))
    lines = verify(capsys, 0, "rerun", str(run))
    digits = json.loads((run / "summary.json").read_text())["parameters_sha256"][:16]
    assert lines[0].startswith("note     torch was 2.0.0, now ")
    assert lines[1:] == [
        f"recorded {digits}…  first",
        f"repeated {digits}…  on 1 × 1 threads",
        "same: the repeated run has the same parameters_sha256 as first",
    ]
    assert kept() == []


def test_another_seed_is_reported(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("\nseed: 0\n", "\nseed: 1\n"))
    lines = verify(capsys, 1, "rerun", str(run))
    assert "differs: the repeated run has another parameters_sha256 than first" in lines
    assert any(
        "they differ first at step 1, in metrics.jsonl: `train/loss`" in line or "step 1 or earlier" in line
        for line in lines
    )
    check_kept(lines)


def test_a_row_missing_from_the_data_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_table(19)
    (line,) = verify(capsys, 2, "rerun", str(run))
    assert line.startswith("error: `data.path` must have the content that first was trained on, SHA-256 ")
    assert not kept()


# -------------------------------------------------------------------------------------------------------------- resume


def test_killed_and_resumed_runs_end_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    """The first run is killed before its first checkpoint, the second twice in a row."""
    lines = verify(capsys, 0, "resume", *LINE, "train.steps=200", "--times", "2")
    assert lines[0] == "added    record.every_steps=1"
    assert lines[2] == "added    checkpoint.every_steps=20"
    undisturbed, once, twice = lines[1].split(), lines[3], lines[4]
    assert undisturbed[1:] == ["200", "steps,", "undisturbed"]
    kills = [[int(n) for n in re.findall(r"killed at (\d+), resumed from (\d+)", line)[0]] for line in (once, twice)]
    assert re.fullmatch(rf" +1  {undisturbed[0]}  same  killed at \d+, resumed from \d+", once)
    assert re.fullmatch(
        rf" +2  {undisturbed[0]}  same  killed at \d+, resumed from \d+; killed at \d+, resumed from \d+", twice
    )
    for step, saved in kills:
        assert 1 <= step < 200
        assert saved in {0, *range(20, 200, 20)}
        assert saved <= step
    assert lines[5].startswith(
        "same: 2 of 2 killed and resumed runs have the same parameters_sha256 and the same rows: 3 kills"
    )
    assert kept() == []


def test_one_flipped_bit_of_the_resumed_state_is_reported(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("site").mkdir()
    Path("site/sitecustomize.py").write_text(BIT)
    monkeypatch.setenv("PYTHONPATH", "site", prepend=os.pathsep)
    monkeypatch.setenv("PART", "1")
    arguments = [
        "train.steps=40",
        "checkpoint.every_steps=1",
        "record.hash_every_steps=1",
        "--times",
        "1",
        "--seed",
        "5",
    ]
    lines = verify(capsys, 1, "resume", *LINE, *arguments)
    (number,) = re.findall(r" differs  killed at \d+, resumed from (\d+)", "\n".join(lines))
    assert "differs: 1 of 1 killed and resumed runs differ from the undisturbed run" in lines
    assert any(line.startswith(f"they differ first at step {number}, in hashes.jsonl: `weight`") for line in lines)
    check_kept(lines)


@pytest.mark.parametrize(
    "rows", [lambda rows: rows[:3] + rows[4:], lambda rows: [*rows[:4], *rows[3:]]], ids=["lost", "twice"]
)
def test_a_lost_or_repeated_row_is_reported(
    rows: Callable[[list[str]], list[str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runs are done in forks of this process, which start faster than new processes."""

    def kill_at(arguments: Sequence[str], log: Path, directory: Path, step: int) -> bool:
        with monkeypatch.context() as patch:
            faults.at_step(patch, step + 1, lambda: os.kill(os.getpid(), signal.SIGKILL))
            return os.WTERMSIG(faults.in_child(lambda: cli.main(arguments))) == signal.SIGKILL

    def run_to_end(arguments: Sequence[str], log: Path) -> None:
        assert faults.in_child(lambda: os._exit(cli.main(arguments))) == 0
        if arguments[-1].startswith("resume="):
            (file,) = Path("temporary").glob("*/killed_1/metrics.jsonl")
            file.write_text("".join(rows(file.read_text().splitlines(keepends=True))))

    monkeypatch.setattr("runner.commands.verify.resume.kill_at", kill_at)
    monkeypatch.setattr("runner.commands.verify.resume.run_to_end", run_to_end)
    lines = verify(capsys, 1, "resume", *LINE, "train.steps=8", "--times", "1")
    assert "differs: 1 of 1 killed and resumed runs differ from the undisturbed run" in lines
    assert any(line.startswith("they differ at step 4 or earlier, in metrics.jsonl: ") for line in lines)


# --------------------------------------------------------------------------------------------------------------- sweep


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("swept")
    arguments = [*LINE, "train.steps=30", "dtype=float64", "seeds=2", f"run_dir={folder / 'sweep'}"]
    return runner.multirun(None, arguments)[0]


def test_a_vmapped_member_gives_the_same_result_alone(swept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = verify(capsys, 0, "sweep", str(swept), "--members", "1")
    assert lines[0].split() == ["member", "in", "the", "sweep", "difference", "alone", "bound"]
    number, *placement, difference, bound, _, dtype = lines[1].split()
    assert number in ("0", "1")
    assert " ".join(placement) == "vmapped with 1"
    assert float(difference) <= float(bound) == 5e-14
    assert dtype == "float64"
    assert lines[2].startswith("a vmapped run rounds the sums over a batch in another order than a run alone")
    assert lines[3] == f"same: 1 of 1 members of {swept} give the same result alone"
    assert kept() == []


def test_a_changed_member_is_reported(swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = Path(shutil.copytree(swept, tmp_path / swept.name, symlinks=True))
    for number in ("0", "1"):
        loaded = checkpoint.load(sweep / number / "checkpoints")
        assert loaded is not None
        loaded.state["model"]["weight"] *= 1 + 1e-12
        checkpoint.save(sweep / number / "checkpoints", loaded.step, loaded.state, best=True, keep=1)
    lines = verify(capsys, 1, "sweep", str(sweep), "--members", "1")
    assert float(lines[1].split()[-4]) == pytest.approx(1e-12, rel=1e-3)  # the factor itself is rounded to 2e-16
    assert any(
        re.fullmatch(rf"differs: member [01] of {sweep} gives another result alone than in the sweep", x) for x in lines
    )
    check_kept(lines)


# -------------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("arguments", "problems"),
    [
        ([], ["`verify` must be followed by one of rerun, resume, world-size, sweep, got ''; see --help"]),
        (["twice"], ["`verify` must be followed by one of rerun, resume, world-size, sweep, got 'twice'; see --help"]),
        (["rerun", "nowhere"], ["`RUN` must be a run directory, got 'nowhere', which is not a directory; correct the path"]),
        (["sweep", "nowhere"], ["`SWEEP` must be a sweep directory, got 'nowhere', which has no sweep.json; correct the path"]),
        (["sweep", "nowhere", "--members=0"], ["`--members` must be at least 1, got 0; use a larger number"]),
        (["resume", *LINE, "--times=0"], ["`--times` must be at least 1, got 0; use a larger number"]),
        (
            ["resume", *LINE, "run_dir=here", "seeds=3"],
            [
                "`run_dir` must be left out, since `runner verify resume` sets it itself; remove run_dir=here",
                "`seeds` must be left out, since `runner verify resume` sets it itself; remove seeds=3",
            ],
        ),
        (
            ["resume", *LINE, "train.steps=many", "optimizer.lr=-1"],
            [
                "`optimizer.lr` must be a finite number from 0 to 1e+38, got -1",
                "`train.steps` must be an integer of at least 1 or null, got 'many'",
            ],
        ),
        (
            ["world-size", *LINE, "--sizes=1,two"],
            ["`--sizes` must be two or more different numbers of processes, got '1,two'; use for example 1,2,4"],
        ),
        (
            ["world-size", *LINE, "--sizes=1,1"],
            ["`--sizes` must be two or more different numbers of processes, got '1,1'; use for example 1,2,4"],
        ),
        (
            ["world-size", *LINE, "launch.processes=2"],
            ["`launch.processes` must be left out, since `runner verify world-size` sets it itself; remove launch.processes=2"],
        ),
    ],
)  # fmt: skip
def test_bad_input_is_refused(arguments: list[str], problems: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(capsys, 2, *arguments) == [f"error: {sentence}" for sentence in problems]
    assert kept() == []


def test_sizes_that_do_not_divide_the_chunks_are_refused_before_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = verify(capsys, 2, "world-size", *LINE, "--sizes=1,3")
    assert line.startswith("error: `strategy.chunks` must be divisible by the number of processes, 3, ")
    assert kept() == []


def test_an_unfinished_run_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "summary.json").unlink()
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "status": "interrupted"}))
    assert verify(capsys, 2, "rerun", str(run)) == [
        "error: `RUN` must be a finished run, got first, which is interrupted; finish it with resume=first, or use another run"
    ]


def test_an_error_message_of_a_child_process_is_reported(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("table.csv").unlink()
    (line,) = verify(capsys, 2, "rerun", str(run))
    assert line.startswith("error: ")
    assert "table.csv" in line
    assert kept() == []


def test_a_failed_child_process_is_reported_and_its_folder_kept(capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert cli.main(["verify", "resume", *LINE, "train.steps=20", "optimizer.lr=1e30", "--times=1"]) == 1
    (folder,) = kept()
    line = capsys.readouterr().err
    assert line.startswith("error: a run ended with exit code 1: training diverged at step 2")
    assert line.endswith(f"; its output is kept in {folder.absolute()}/undisturbed.log\n")


def test_a_signal_ends_the_current_run_and_leaves_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    pids: list[int] = []

    def stop() -> None:
        """Wait for run.json, which has the process id of the run, then send the signal."""
        while not (records := list(Path("temporary").glob("*/undisturbed/run.json"))):
            time.sleep(0.01)
        pids.append(json.loads(records[0].read_text())["pid"])
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop, daemon=True)
    thread.start()
    assert cli.main(["verify", "resume", *LINE, "train.steps=1000000"]) == 143
    thread.join()
    assert capsys.readouterr().err == "stopped; no verdict (SIGTERM)\n"
    assert not Path(f"/proc/{pids[0]}").exists()
    assert kept() == []


def test_help_is_that_of_the_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(capsys, 0, "resume", "--help")[0].startswith("python -m runner verify rerun RUN ")
