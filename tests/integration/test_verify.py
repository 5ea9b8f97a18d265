"""`verify`: real processes that give the same bits, and faults that it notices; refusals before anything is started."""

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

import faults
import pytest

import runner
from runner import cli
from runner.runs import checkpoint

QUICK = ["device=cpu", "device.threads=1", "record.plots=false"]
LINE = ["+experiment=linreg", *QUICK]

BIT = """
import os, sys
if os.environ.get("PART"):
    import torch
    from runner import checkpoint

    load = checkpoint.load

    def flipped(folder):
        # As if the state had been saved so: its manifest is valid, and one bit of it another one.
        found = load(folder)
        if found is not None:
            found.state["model"]["weight"].view(torch.int32)[0, 0] ^= 1
        return found

    checkpoint.load = flipped
"""
"""What every child of a test imports first, where the test asks for it."""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Temporary folders of `verify` lie in one of the test's, so that it sees what is left of them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr(tempfile, "tempdir", None)


def told(capsys: pytest.CaptureFixture[str], code: int, *words: str) -> list[str]:
    capsys.readouterr()
    answered = cli.main(["verify", *words])
    out = capsys.readouterr()
    assert answered == code, out
    return (out.err if code == 2 else out.out).splitlines()


def kept() -> list[Path]:
    return list(Path("temporary").glob("runner-verify-*"))


def ends_kept(lines: list[str]) -> None:
    """The last lines name what was kept, and how to look further."""
    (folder,) = kept()
    assert lines[-2] == f"kept     {folder.absolute()}"
    assert re.fullmatch(r"look     python -m runner diverge \S+ \S+", lines[-1])
    assert cli.main(lines[-1].split()[4:]) == 1


# --------------------------------------------------------------------------------------------------------------- rerun


def measured(rows: int) -> None:
    """A table as a file."""
    Path("table.csv").write_text("".join(["x,y\n", *(f"{x},{2 * x + x % 3}\n" for x in range(rows))]))


@pytest.fixture
def run() -> Path:
    measured(20)
    words = [*QUICK, "data=csv", "data.path=table.csv", "data.target=y", "update=manual", "optimizer.lr=1e-4"]
    return runner.run(None, [*words, "train.steps=10", "record.every_steps=1", "run_dir=first"]).directory


def test_a_run_done_again_is_the_same_and_nothing_is_kept(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "torch": "2.0.0"}))
    lines = told(capsys, 0, "rerun", str(run))
    digits = json.loads((run / "summary.json").read_text())["parameters_sha256"][:16]
    assert lines[0].startswith("note     torch was 2.0.0, and is ")
    assert lines[1:] == [
        f"recorded {digits}…  first",
        f"again    {digits}…  on 1 × 1 threads",
        "same: parameters_sha256 of first is that of the same run done again",
    ]
    assert kept() == []


def test_another_seed_is_noticed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("\nseed: 0\n", "\nseed: 1\n"))
    lines = told(capsys, 1, "rerun", str(run))
    assert "differs: parameters_sha256 of first is not that of the same run done again" in lines
    assert any(
        "they differ first at step 1, in metrics.jsonl: `train/loss`" in line or "step 1 at the latest" in line
        for line in lines
    )
    ends_kept(lines)


def test_a_skipped_row_is_noticed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measured(19)
    lines = told(capsys, 1, "rerun", str(run))
    assert "differs: parameters_sha256 of first is not that of the same run done again" in lines
    ends_kept(lines)


# -------------------------------------------------------------------------------------------------------------- resume


def test_runs_that_are_killed_end_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    """The first before its first checkpoint, the second twice in a row."""
    lines = told(capsys, 0, "resume", *LINE, "train.steps=200", "--times", "2")
    assert lines[0] == "added    record.every_steps=1"
    assert lines[2] == "added    checkpoint.every_steps=20"
    whole, once, twice = lines[1].split(), lines[3], lines[4]
    assert whole[1:] == ["200", "steps,", "undisturbed"]
    kills = [[int(n) for n in re.findall(r"killed at (\d+), on from (\d+)", line)[0]] for line in (once, twice)]
    assert re.fullmatch(rf" +1  {whole[0]}  same  killed at \d+, on from \d+", once)
    assert re.fullmatch(rf" +2  {whole[0]}  same  killed at \d+, on from \d+; killed at \d+, on from \d+", twice)
    for step, saved in kills:
        assert 1 <= step < 200
        assert saved in {0, *range(20, 200, 20)}
        assert saved <= step
    assert lines[5].startswith(
        "same: 2 of 2 runs that were killed end with the same parameters_sha256 and the same rows: 3 kills"
    )
    assert kept() == []


def test_one_bit_of_the_state_that_a_run_goes_on_from_is_noticed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("site").mkdir()
    Path("site/sitecustomize.py").write_text(BIT)
    monkeypatch.setenv("PYTHONPATH", "site", prepend=os.pathsep)
    monkeypatch.setenv("PART", "1")
    words = ["train.steps=40", "checkpoint.every_steps=1", "record.hash_every_steps=1", "--times", "1", "--seed", "5"]
    lines = told(capsys, 1, "resume", *LINE, *words)
    (number,) = re.findall(r" differs  killed at \d+, on from (\d+)", "\n".join(lines))
    assert "differs: 1 of 1 runs that were killed do not end as the one that was not" in lines
    assert any(line.startswith(f"they differ first at step {number}, in hashes.jsonl: `weight`") for line in lines)
    ends_kept(lines)


@pytest.mark.parametrize(
    "rows", [lambda rows: rows[:3] + rows[4:], lambda rows: [*rows[:4], *rows[3:]]], ids=["lost", "twice"]
)
def test_a_row_that_is_lost_or_there_twice_is_noticed(
    rows: Callable[[list[str]], list[str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runs are done in this process and in a fork of it, which start at once."""

    def kill_at(words: Sequence[str], log: Path, directory: Path, step: int) -> bool:
        with monkeypatch.context() as patch:
            faults.at_step(patch, step + 1, lambda: os.kill(os.getpid(), signal.SIGKILL))
            return os.WTERMSIG(faults.in_child(lambda: cli.main(words))) == signal.SIGKILL

    def finish(words: Sequence[str], log: Path) -> None:
        assert cli.main(words) == 0
        if words[-1].startswith("resume="):
            (file,) = Path("temporary").glob("*/killed_1/metrics.jsonl")
            file.write_text("".join(rows(file.read_text().splitlines(keepends=True))))

    monkeypatch.setattr("runner.commands.verify.resume.kill_at", kill_at)
    monkeypatch.setattr("runner.commands.verify.resume.finish", finish)
    lines = told(capsys, 1, "resume", *LINE, "train.steps=8", "--times", "1")
    assert "differs: 1 of 1 runs that were killed do not end as the one that was not" in lines
    assert any(line.startswith("they differ at step 4 at the latest, in metrics.jsonl: ") for line in lines)


# --------------------------------------------------------------------------------------------------------------- sweep


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("swept")
    words = [*LINE, "train.steps=30", "dtype=float64", "seeds=2", f"run_dir={folder / 'sweep'}"]
    return runner.multirun(None, words)[0]


def test_a_member_alone_is_what_it_was_side_by_side(swept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = told(capsys, 0, "sweep", str(swept), "--members", "1")
    assert lines[0].split() == ["member", "in", "the", "sweep", "difference", "alone", "bound"]
    number, *words, difference, bound, _, dtype = lines[1].split()
    assert number in ("0", "1")
    assert " ".join(words) == "side by side with 1"
    assert float(difference) <= float(bound) == 5e-14
    assert dtype == "float64"
    assert lines[2].startswith("side by side, sums over a batch are rounded in another order than alone")
    assert lines[3] == f"same: 1 of 1 members of {swept} end alone where they ended in it"
    assert kept() == []


def test_a_member_that_is_off_is_noticed(swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = Path(shutil.copytree(swept, tmp_path / swept.name, symlinks=True))
    for number in ("0", "1"):
        loaded = checkpoint.load(sweep / number / "checkpoints")
        assert loaded is not None
        loaded.state["model"]["weight"] *= 1 + 1e-12
        checkpoint.save(sweep / number / "checkpoints", loaded.step, loaded.state, best=True, keep=1)
    lines = told(capsys, 1, "sweep", str(sweep), "--members", "1")
    assert float(lines[1].split()[-4]) == pytest.approx(1e-12, rel=1e-3)  # the factor itself is rounded to 2e-16
    assert any(
        re.fullmatch(rf"differs: member [01] of {sweep} does not end alone where it ended in it", x) for x in lines
    )
    ends_kept(lines)


# -------------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("words", "told_"),
    [
        ([], ["`verify` must be followed by one of rerun, resume, world-size, sweep, but is by ''; see --help"]),
        (["twice"], ["`verify` must be followed by one of rerun, resume, world-size, sweep, but is by 'twice'; see --help"]),
        (["rerun", "nowhere"], ["`RUN` must be a run directory, got 'nowhere', which is not a directory; correct the path"]),
        (["sweep", "nowhere"], ["`SWEEP` must be a sweep directory, but 'nowhere' has no sweep.json; mend the path"]),
        (["sweep", "nowhere", "--members=0"], ["`--members` must be at least 1, but is 0; give another number"]),
        (["resume", *LINE, "--times=0"], ["`--times` must be at least 1, but is 0; give another number"]),
        (
            ["resume", *LINE, "run_dir=here", "seeds=3"],
            [
                "`run_dir` must be left out, since `runner verify resume` gives it itself; take run_dir=here away",
                "`seeds` must be left out, since `runner verify resume` gives it itself; take seeds=3 away",
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
            ["`--sizes` must be two or more different numbers of processes, such as 1,2,4, but is '1,two'; mend it"],
        ),
        (
            ["world-size", *LINE, "--sizes=1,1"],
            ["`--sizes` must be two or more different numbers of processes, such as 1,2,4, but is '1,1'; mend it"],
        ),
        (
            ["world-size", *LINE, "launch.processes=2"],
            ["`launch.processes` must be left out, since `runner verify world-size` gives it itself; take launch.processes=2 away"],
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_verified_is_refused(
    words: list[str], told_: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert told(capsys, 2, *words) == [f"error: {sentence}" for sentence in told_]
    assert kept() == []


def test_processes_that_do_not_divide_the_chunks_are_refused_before_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = told(capsys, 2, "world-size", *LINE, "--sizes=1,3")
    assert line.startswith("error: `strategy.chunks` must be divisible by the number of processes, 3, ")
    assert kept() == []


def test_a_run_that_has_not_finished_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "summary.json").unlink()
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "status": "interrupted"}))
    assert told(capsys, 2, "rerun", str(run)) == [
        "error: `RUN` must be a run that has finished, but first is interrupted; let it end (resume=first), or give another one"
    ]


def test_what_a_child_refuses_is_told_as_its_own(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("table.csv").unlink()
    (line,) = told(capsys, 2, "rerun", str(run))
    assert line.startswith("error: ")
    assert "table.csv" in line
    assert kept() == []


def test_a_child_that_fails_is_told_and_its_folder_kept(capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert cli.main(["verify", "resume", *LINE, "train.steps=20", "optimizer.lr=1e30", "--times=1"]) == 1
    (folder,) = kept()
    line = capsys.readouterr().err
    assert line.startswith("error: a run ended with exit code 1: training diverged at step 2")
    assert line.endswith(f"; what it said is kept in {folder.absolute()}/undisturbed.log\n")


def test_a_signal_ends_the_run_in_progress_and_leaves_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    begun: list[int] = []

    def stop() -> None:
        """Not before the run has a directory, in which it says its process id."""
        while not (records := list(Path("temporary").glob("*/undisturbed/run.json"))):
            time.sleep(0.01)
        begun.append(json.loads(records[0].read_text())["pid"])
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop, daemon=True)
    thread.start()
    assert cli.main(["verify", "resume", *LINE, "train.steps=1000000"]) == 143
    thread.join()
    assert capsys.readouterr().err == "stopped; nothing was found out (SIGTERM)\n"
    assert not Path(f"/proc/{begun[0]}").exists()
    assert kept() == []


def test_its_help_is_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, 0, "resume", "--help")[0].startswith("python -m runner verify rerun RUN ")
