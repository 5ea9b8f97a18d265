"""`model.embedding_size`: categories as codes, with a vector for each, and with some of them hidden in training."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

import runner
from runner.compute.rng import stream
from runner.errors import ConfigError
from runner.training.run import Run

QUICK = ["device=cpu", "device.threads=1", "record.plots=false", "record.sinks=[jsonl]", "data=csv", "data.path=t.csv", "data.target=y", "dtype=float64"]  # fmt: skip
NET = ["model=mlp", "model.widths=[5]", "model.embedding_size=3", "optimizer=adam", "optimizer.lr=0.01"]
SPLIT = ["data.split.valid=20", "data.split.order=sequential"]
COLORS = ("blue", "green", "red")
KINDS = ("a", "b")
ROWS = 100
TRAIN = 80
ROUNDING = 1e-11
"""Largest difference of parameters near 1 after some tens of float64 steps whose sums are in another order."""


@pytest.fixture(autouse=True)
def columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """Write t.csv, and return its columns. Among the training rows are no yellow ones, and two without a kind."""
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(3)
    color, kind, x = draw.choice(COLORS, ROWS), draw.choice(KINDS, ROWS), draw.normal(size=ROWS)
    kind[[4, 9]] = ""
    color[TRAIN:][:3] = "yellow"
    y = 2 * (color == "red") - (kind == "a") + x + 0.1 * draw.normal(size=ROWS)
    lines = (f"{c},{k},{a!r},{b!r}" for c, k, a, b in zip(color, kind, x.tolist(), y.tolist(), strict=True))
    Path("t.csv").write_text("\n".join(["color,kind,x,y", *lines]) + "\n")
    return {"color": color, "kind": kind, "x": x, "y": y}


def run(*overrides: str) -> Run:
    return runner.run(None, [*QUICK, *SPLIT, "data.missing=mean", *NET, *overrides])


def parameters(summary: Any) -> dict[str, Tensor]:
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in summary["parameters"].items()}


def largest_difference(one: Any, other: Any) -> float:
    pairs = zip(parameters(one).values(), parameters(other).values(), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


def predictions(values: dict[str, Tensor], x: Tensor, codes: Tensor) -> Tensor:
    """Return the predictions of a network of one hidden layer of relu, with an embedding for each column of codes."""
    tables = [values[f"0.tables.{place}.weight"] for place in range(codes.shape[1])]
    features = torch.cat([x, *(nn.functional.embedding(codes[:, i], table) for i, table in enumerate(tables))], 1)
    hidden = nn.functional.linear(features, values["1.weight"], values["1.bias"]).relu()
    return nn.functional.linear(hidden, values["3.weight"], values["3.bias"])


def test_codes_are_places_among_the_sorted_values_of_the_training_rows(columns: dict[str, np.ndarray]) -> None:
    """Missing and new values have code 0: the predictions are those of the vectors there."""
    result = run("train.steps=3")
    codes = [[(*values, None).index(cell if cell in values else None) for cell in columns[name]] for name, values in (("color", COLORS), ("kind", KINDS))]  # fmt: skip
    known = torch.tensor(codes).T + 1
    known[known > torch.tensor([len(COLORS), len(KINDS)])] = 0
    x = torch.from_numpy(columns["x"]).unsqueeze(1)
    expected = predictions(parameters(result.summary), x, known)[:, 0]
    with open(result.directory / "residuals.csv", newline="") as file:
        found = [float(row["prediction"]) for row in csv.DictReader(file)]
    assert (known[TRAIN:][:3, 0] == 0).all()  # yellow
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-13)  # one sum in another order
    features = {
        entry["name"]: entry for entry in json.loads((result.directory / "preprocessing.json").read_text())["features"]
    }
    assert (features["color"]["values"], features["color"]["codes"]) == (list(COLORS), True)


def test_training_hides_categories_by_seed_column_epoch_and_row(columns: dict[str, np.ndarray]) -> None:
    """Two steps of gradient descent on all rows, each with other hidden categories, against torch.autograd."""
    data, steps = ["data.drop=[kind]", "optimizer=sgd", "optimizer.lr=0.1", "seed=7"], 2
    args = [*QUICK, *SPLIT, *NET[:3], *data]
    values = parameters(runner.run(None, [*args, f"train.steps={steps}"]).summary)
    trained = {name: value.requires_grad_() for name, value in _start(7).items()}
    x, y = (torch.from_numpy(columns[name][:TRAIN]).unsqueeze(1) for name in ("x", "y"))
    code = torch.tensor([COLORS.index(cell) + 1 for cell in columns["color"][:TRAIN]])
    hidden = []
    for epoch in range(1, steps + 1):
        hidden.append(torch.rand(TRAIN, generator=stream(7, "hidden/0", epoch), dtype=torch.float64) < 0.01)
        loss = (predictions(trained, x, code.masked_fill(hidden[-1], 0).unsqueeze(1)) - y).square().mean()
        for value, gradient in zip(trained.values(), torch.autograd.grad(loss, list(trained.values())), strict=True):
            value.data -= 0.1 * gradient
    assert hidden[0].any()  # with this seed
    assert not torch.equal(*hidden)
    for name, value in trained.items():
        torch.testing.assert_close(values[name], value.detach(), rtol=1e-12, atol=1e-14)


def _start(seed: int) -> dict[str, Tensor]:
    """Return start values: vectors N(0, 1), then U(−1/√inputs, 1/√inputs) for each layer."""
    generator = stream(seed, "init")
    shapes = {"0.tables.0.weight": (4, 3), "1.weight": (5, 4), "1.bias": (5,), "3.weight": (1, 5), "3.bias": (1,)}
    found = {}
    for name, shape in shapes.items():
        value = torch.empty(shape, dtype=torch.float64)
        bound = {"1": 4, "3": 5}.get(name[0], 0) ** -0.5 if name[0] != "0" else 0.0
        found[name] = (
            value.uniform_(-bound, bound, generator=generator) if bound else value.normal_(generator=generator)
        )
    return found


def test_a_resumed_run_ends_with_the_same_bits() -> None:
    """The checkpoint is in the middle of an epoch."""
    args = ["train.batch_size=32", "run_dir=cut"]
    whole = run("train.batch_size=32", "train.steps=14").summary
    run(*args, "train.steps=7")
    resumed = runner.run(None, ["resume=cut", "train.steps=14"]).summary
    assert resumed["parameters_sha256"] == whole["parameters_sha256"]


@pytest.mark.parametrize("batch", ["null", "32"])
def test_the_trials_of_a_vmapped_sweep_hide_what_they_hide_alone(batch: str) -> None:
    args = [f"train.batch_size={batch}", "train.steps=20", "optimizer.lr=0.01"]
    path, _ = runner.multirun(None, [*QUICK, *SPLIT, "data.missing=mean", *NET, *args, "seed=1,2"])
    assert json.loads((path / "sweep.json").read_text())["members"]
    for number, seed in enumerate((1, 2)):
        lane = json.loads((path / str(number) / "summary.json").read_text())
        assert largest_difference(lane, run(*args, f"seed={seed}").summary) < ROUNDING


@pytest.mark.parametrize("portions", ["train.accumulate=3", "strategy.reduction=exact"])
@pytest.mark.parametrize("batch", ["null", "32"])
def test_every_portion_of_a_batch_hides_its_own_rows(portions: str, batch: str) -> None:
    """Also of all rows, whose portions are taken once: each step hides others."""
    args = [f"train.batch_size={batch}", "train.steps=20"]
    assert largest_difference(run(*args, portions).summary, run(*args).summary) < ROUNDING


@pytest.mark.filterwarnings("ignore:column 'color' has values that the training rows did not have")
def test_new_rows_are_predicted_as_the_run_does(columns: dict[str, np.ndarray]) -> None:
    result = run("train.steps=3")
    with open(result.directory / "residuals.csv", newline="") as file:
        expected = [float(row["prediction"]) for row in csv.DictReader(file)]
    model = runner.load(str(result.directory))
    frame = pa.table({name: [cell or None for cell in columns[name].tolist()] for name in ("kind", "x", "color")})
    np.testing.assert_allclose(model.predict(frame), expected, rtol=1e-13)
    numbers, codes = model.preprocess(frame)
    assert numbers.shape == (ROWS, 1)
    known = {name: 1 + place for values in (COLORS, KINDS) for place, name in enumerate(values)}
    color, kind = (known.get(columns[name][row], 0) for name, row in (("color", 4), ("kind", TRAIN)))
    assert codes[[4, TRAIN]].tolist() == [[color, 0], [0, kind]]


def test_a_table_without_categories_has_no_embeddings() -> None:
    with pytest.raises(ConfigError) as refused:
        run("data.drop=[color,kind]")
    assert refused.value.problems == (
        "`model.embedding_size` must be null without columns of categories, of which the data have none; "
        "use model.embedding_size=null, or name some in `data.categorical`",
    )
    assert not list(Path().glob("runs/**/run.json"))
