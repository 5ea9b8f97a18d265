"""The report of one run: the lines at its start, and the figures, lines and plots at its end."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from runner.compute.bounds import Bounds
from runner.compute.devices import DeviceChoice
from runner.compute.gc_pause import gc_paused
from runner.config.constraints import eager_because
from runner.config.documents import FORMAT
from runner.config.schema import Config, LossConfig, MemoryModel, ModelConfig
from runner.data.dataset import Dataset
from runner.optim.convergence import free
from runner.optim.covariance import nearly_equal
from runner.optim.optimum import noise_floor, observed_rate
from runner.runs.plots import LINE_POINTS, MOST_PLOTTED, RunPlots, draw_targets
from runner.runs.records import number_names
from runner.runs.sinks.jsonl import each_row
from runner.training import own_metrics
from runner.training.baselines import baselines
from runner.training.experiment import Outcome, RunInfo
from runner.training.metrics import Evaluation
from runner.training.run_state import RunState

MOST_PARAMETERS = 1_000
"""Largest number of parameters that summary.json lists; those of a larger model are in the checkpoint only."""

MOST_PAIRS = 3
"""Largest number of pairs of correlated parameters that are printed."""

MOST_NAMED = 10
"""Largest number of targets that a line names."""

EXACT = 1e-6
"""Share of the variance of the targets below which what a model leaves unexplained is no reason to prefer another step."""

# --------------------------------------------------------------------------------------------------------------- start


def introduction(info: RunInfo, choice: DeviceChoice, path: Path, step: int) -> Iterator[str]:
    """Yield the lines that introduce a run in directory `path`, which starts or is resumed after `step` updates."""
    config, dataset = info.config, info.dataset
    rows = ", ".join(f"{len(part):,} {name}" for name, part in dataset.parts.items())
    yield f"run      {path}"
    yield f"device   {choice.name} ({choice.reason}), {_counted(torch.get_num_threads(), 'thread')}"
    if info.size > 1 or config.strategy.reduction == "exact":
        yield f"strategy {info.strategy} on {_counted(info.size, 'process')}, {_reduction(config)}"
    yield f"dtype    {config.dtype}" + (f", amp {config.amp}" if config.amp != "off" else "")
    features = _counted(len(dataset.feature_names) + len(dataset.category_names), "feature")
    weighted = "" if config.data.weighted_by is None else f", weighted by {config.data.weighted_by}"
    split = config.data.split
    fold = "" if split.fold is None else f", fold {split.fold} of {split.folds}"
    yield f"data     {config.data.name}: {rows} rows of {features} → {_targets(dataset)}{weighted}{fold}"
    if dataset.notes:
        yield f"read     {'; '.join(dataset.notes)}"
    yield f"model    {_named(config.model)}, {_counted(info.parameter_count, 'parameter')}, loss {_named(config.loss)}"
    if info.start is not None:
        yield f"start    {info.start.sentence}"
    lr, update = config.optimizer.lr, "by hand" if config.update == "manual" else "by torch.optim"
    rate = "" if lr is None else f" {update}, lr {lr:g} ({config.schedule.name})"
    yield f"update   {config.optimizer.name}{rate}"
    yield f"training {info.steps:,} steps of {info.batch_size:,} rows" + (f", from step {step}" if step else "")
    if choice.kind in ("cuda", "rocm"):
        reason = eager_because(config, info.lanes)
        yield "steps    " + ("as CUDA graphs" if reason is None else f"eager: {reason}")


def _named(part: LossConfig | ModelConfig) -> str:
    """Return the name of a part, and the code of the user's own that it is."""
    own = part.target if isinstance(part, MemoryModel) else None if part.code is None else part.code.text
    return part.name if own is None else f"{part.name} ({own})"


def _targets(dataset: Dataset) -> str:
    """Return the names of the targets, of many the first ones."""
    names = dataset.target_names
    more = f" and {len(names) - MOST_NAMED:,} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def _reduction(config: Config) -> str:
    return f"exact over {config.strategy.chunks} chunks" if config.strategy.reduction == "exact" else "fast"


def hyperparameters(config: Config, swept: Mapping[str, Any]) -> dict[str, float | str | bool]:
    """Return the columns of TensorBoard's table of hyperparameters, with the swept values of the run.

    The columns are the same for every experiment, because TensorBoard takes their names from the first run it finds.
    It sorts them and shows the first five, which should be those that runs differ in.
    """
    return {
        "data": config.data.name,
        "lr": config.optimizer.lr or 0.0,
        "model": config.model.name,
        "optimizer": config.optimizer.name,
        "seed": config.seed,
        "update": config.update,
        "weight_decay": getattr(config.optimizer, "weight_decay", 0.0),
        "widths": str(list(getattr(config.model, "widths", []))),
        **{name: value if isinstance(value, (bool, float, int)) else str(value) for name, value in swept.items()},
    }


# ----------------------------------------------------------------------------------------------------------------- end


def fitted(info: RunInfo, outcome: Outcome) -> dict[str, Any]:
    """Return the summary's entries on the fitted parameters; none for a model with more than 1,000 of them."""
    if info.parameter_count > MOST_PARAMETERS:
        return {}
    trained = {name: value.tolist() for name, value in outcome.fitted.items()}
    entries: dict[str, Any] = {"parameters": {**trained, **info.config.model.fixed_parameters}}
    if outcome.terms:
        values = [number for value in outcome.fitted.values() for number in value.flatten().tolist()]
        entries["coefficients"] = dict(zip(outcome.terms, values, strict=False))  # there may be no constant
    if info.config.data.log_target:
        entries["fitted_to"] = ", ".join(f"log({name})" for name in info.dataset.target_names)
    return entries


def answers(info: RunInfo, run: RunState, rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the summary's entries on the quality of the answer.

    These are the optimum and the noise floor where they are known, and the standard errors of the parameters where the
    method gives them. The rows of metrics give the observed rate of convergence.
    """
    entries: dict[str, Any] = {}
    outcome: Outcome = run.outcome
    if outcome.optimum is not None:
        rounding = outcome.optimum["rounding_distance"] or 0.0
        rate = observed_rate(rows, rounding)
        entries["optimum"] = {**outcome.optimum, "observed_rate": rate}
    floor = noise_floor(info.config, info.dataset.scaling.target_scale)
    if floor is not None:
        entries["noise_floor"] = floor
    if outcome.inference is not None:
        fixed = info.config.model.fixed_parameters
        settled = run.settled and run.selected is run.last
        names = [name for name in number_names(fitted(info, outcome)) if name not in fixed]
        entries.update(outcome.inference.summary(outcome.fitted, names, info.dataset.target_names, settled))
    if info.config.model.fixed_parameters:
        entries["fixed"] = list(info.config.model.fixed_parameters)
    if at_bounds := _at_bounds(info, outcome):
        entries["at_bounds"] = at_bounds
    if "calibrate" in info.dataset.parts:
        entries["calibration_rows"] = len(info.dataset.parts["calibrate"])
    return entries


def comparison(info: RunInfo) -> dict[str, Any]:
    """Return the summary's entry on what simple models reach with the same table; none where the true function is known."""
    chosen = info.config.record.baselines
    if not chosen or info.config.data.noise_deviation is not None:
        return {}
    return {"baselines": baselines(info.dataset, chosen, own_metrics.build(info.config))}


def _at_bounds(info: RunInfo, outcome: Outcome) -> dict[str, str]:
    """Return the parameters that are at a bound, and which: "lower" or "upper"."""
    limits = info.config.model.limits
    if not limits:
        return {}
    sides = Bounds.of(limits, outcome.parameters).sides(torch.stack(list(outcome.parameters.values())))
    return {name: side for name, side in zip(outcome.parameters, sides, strict=True) if side}


def summary(info: RunInfo, run: RunState, answers: Mapping[str, Any], timing: Mapping[str, float]) -> dict[str, Any]:
    """Return the content of summary.json of a finished run.

    Parameters and `answers` are those of the selected state.
    """
    last, selected = run.last, run.selected
    assert last is not None
    assert selected is not None
    return {
        "format": FORMAT,
        "steps": last.step,
        "stopped_early": run.stopped_early,
        "metrics": last.metrics,
        "parameters_sha256": last.parameters_sha256,
        "selected": asdict(selected),
        **fitted(info, run.outcome),
        **answers,
        "timing": dict(timing),
    }


def explanation(info: RunInfo, run: RunState, answers: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines that explain the metrics and parameters of a finished run."""
    config = info.config
    yield from _selected(info, run)
    yield from _quality(answers, config, "the run ended" if run.selected is run.last else "the selected state is")
    yield from _no_better_than_the_mean(answers, run.outcome)
    yield from _fit(answers, run)
    if run.stopped_early and not run.settled:
        metric, patience = f"{info.watched}/{config.train.early_stopping.metric}", config.train.early_stopping.patience
        best = "has had no value" if run.early.value is None else f"has not become better than {run.early.value:.6g}"
        yield f"stopped  early: {metric} {best} in {patience} evaluations"
    yield from _without_value(info, run.outcome)
    yield from _units(info)
    if rows := answers.get("calibration_rows"):
        yield f"interval by {_counted(rows, 'row')} of data.split.calibrate, for levels up to {rows}/{rows + 1} (predict --interval)"


def _without_value(info: RunInfo, outcome: Outcome) -> Iterator[str]:
    """Yield a line for each metric of the user's own that is not finite."""
    for target in info.config.own_metrics:
        for part in info.dataset.evaluated:
            value = outcome.metrics[f"{part}/{target.name}"]
            if not math.isfinite(value):
                yield f"metric   {part}/{target.name} is {value}: {target.text} has no finite value for some of the {part} rows"


def _selected(info: RunInfo, run: RunState) -> Iterator[str]:
    """Yield the line that says which state is reported, or that an earlier one was clearly better."""
    best, last, selected = run.best, run.last, run.selected
    assert last is not None
    assert selected is not None
    if best.value is None or best.step is None or best.metric != info.config.train.early_stopping.metric:
        return
    name = f"{info.watched}/{best.metric}"
    value = last.metrics[name]
    if selected is not last:
        yield f"selected step {best.step:,}, the best by {name}: {best.value:.6g}; the last step, {last.step:,}, has {value:.6g}"
    elif run.reports_best:
        yield f"selected step {last.step:,}, the last, which is the best by {name}"
    elif best.is_clearly_better_than(value) and not 1 - last.metrics[f"{info.watched}/r2"] < EXACT:
        yield (
            f"best     step {best.step:,} is clearly better than the last: {name} {best.value:.6g} instead of {value:.6g}; "
            "resume this run with train.select=best to report that one"
        )


def _units(info: RunInfo) -> Iterator[str]:
    """Yield the lines on the units of the metrics, and on targets without plots."""
    data, targets = info.config.data, info.dataset.target_names
    if data.scales_target or data.log_target:
        yield f"units    rmse and mae are in the units of {_targets(info.dataset)}; loss is in the units of training"
    if len(targets) > 1:
        yield f"targets  rmse, mae and r2 of a part are means over {len(targets)} targets"
    if len(targets) > MOST_PLOTTED and info.config.record.plots:
        yield f"plots    of the first {MOST_PLOTTED} of {len(targets):,} targets"


def _quality(answers: Mapping[str, Any], config: Config, it_is: str) -> Iterator[str]:
    """Yield the lines that compare the answer with what is possible. `it_is` says whose it is."""
    optimum, floor = answers.get("optimum"), answers.get("noise_floor")
    if optimum is not None:
        yield (
            f"optimum  train/loss {optimum['loss']:.6g}; {it_is} {optimum['gap']:.3g} above the optimum, "
            f"its parameters {optimum['distance']:.3g} away"
        )
        if config.optimizer.linear_only:
            digits = {"float64": 16, "float32": 7}[config.dtype]
            yield (
                f"digits   about {int(optimum['digits'])} of the {digits} digits of {config.dtype} are certain in the worst "
                f"parameter; condition number {optimum['condition_number']:.3g}"
            )
    if floor is not None:
        loss = f" (loss {floor['loss']:.6g})" if "loss" in floor else ""
        yield (
            f"noise    rmse {floor['rmse']:.6g}{loss} is the error of the function that made the data; "
            "on average no model is better on new rows"
        )


def _no_better_than_the_mean(answers: Mapping[str, Any], outcome: Outcome) -> Iterator[str]:
    """Yield a line if the model is not better than the mean on the rows that it was trained on least."""
    mean = answers.get("baselines", {}).get("mean")
    if mean is None:
        return
    judged = next(part for part in ("test", "valid", "train") if f"{part}/rmse" in mean)
    names = [name for name in mean if name.startswith(f"{judged}/rmse/")] or [f"{judged}/rmse"]
    for name in names:
        own, its = outcome.metrics[name], mean[name]
        if not own < its:
            yield f"mean     the model is not better than the mean of the training rows: {name} {own:.6g}, and {its:.6g} for the mean"


def _fit(answers: Mapping[str, Any], run: RunState) -> Iterator[str]:
    """Yield the lines on whether the fit has converged."""
    assert run.selected is not None
    after = f"after {_counted(run.selected.step, 'step')}"
    if "converged" not in answers:
        if run.settled and run.selected is run.last:
            yield f"settled  {after}: a further one finds no better parameters"
        return
    if not answers["converged"]:
        yield f"fit      not converged {after}: {answers['not_converged_because']}"
        return
    yield f"fit      converged {after}; {_spread(answers)}"
    yield from _bounded(answers)
    if "undetermined" in answers:
        yield f"fit      {free(answers['undetermined'])}, so there are no standard errors"
    pairs = [*nearly_equal(answers.get("correlation", {}))]
    for first, second, value in sorted(pairs, key=lambda pair: -abs(pair[2]))[:MOST_PAIRS]:
        yield (
            f"fit      the parameters {first} and {second} are strongly correlated ({value:.6f}): "
            "a change of one compensates a change of the other"
        )
    if len(pairs) > MOST_PAIRS:
        yield f"fit      {len(pairs) - MOST_PAIRS:,} more such pairs: see `correlation` in summary.json"


def _bounded(answers: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each parameter at a bound, with what it means for the standard errors where there are any."""
    errors = answers.get("standard_errors")
    others = ", and those of the others hold for this value" if errors else ""
    without = "" if errors is None else f": it has no standard error{others}"
    for name, side in answers.get("at_bounds", {}).items():
        yield f"fit      {name} is at its {side} bound{without}"


def _spread(answers: Mapping[str, Any]) -> str:
    """Return what is known of the spread of the residuals, in words."""
    found, freedom = answers["residual_standard_deviation"], answers["degrees_of_freedom"]
    if freedom <= 0:
        return "the rows leave no degrees of freedom"
    of_each = [f"{found:.6g}"] if isinstance(found, float) else [f"{name} {value:.6g}" for name, value in found.items()]
    deviation = ", ".join(of_each[:MOST_NAMED]) + ", …" * (len(of_each) > MOST_NAMED)
    return f"residual standard deviation {deviation}, {_counted(freedom, 'degree')} of freedom"


def nothing_left(path: Path, step: int, state: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """Return the line for a resumed run that is finished already, from its last checkpoint and its summary."""
    reason = (
        "a further step finds no better parameters"
        if state.get("settled")
        else "it stopped early, as configured"
        if state["stopped_early"]
        else "for more steps: train.steps=…"
    )
    why = (
        f"; the fit has not converged: {summary['not_converged_because']}" if "not_converged_because" in summary else ""
    )
    return f"{path} is finished at step {step}; there is nothing left to do ({reason}){why}"


def _counted(number: int, thing: str) -> str:
    plural = thing if number == 1 else thing + ("es" if thing.endswith("s") else "s")
    return f"{number:,} {plural}"


# --------------------------------------------------------------------------------------------------------------- plots


def plot(info: RunInfo, run: RunState, answers: Mapping[str, Any], path: Path) -> dict[str, bytes]:
    """Draw the plots of a finished run in directory `path`, of its selected state. Returns PNG files by name: "fit", "loss", "residuals".

    With several targets there are "fit_1", "fit_2", … of the first ones, and likewise "residuals_1".
    """
    known = {"optimum": answers.get("optimum"), "noise floor": answers.get("noise_floor")}
    levels = {name: entry["loss"] for name, entry in known.items() if entry and "loss" in entry}
    with gc_paused():
        return _draw(info, run, path / "metrics.jsonl", levels)


def _draw(info: RunInfo, run: RunState, metrics: Path, levels: Mapping[str, float]) -> dict[str, bytes]:
    """Return PNG files by name, from the predictions of the whole model and the known losses `levels`."""
    outcome: Outcome = run.outcome
    earlier = None if run.selected is None or run.selected is run.last else run.selected.step
    dataset, scaling, evaluation = info.dataset, info.dataset.scaling, outcome.evaluation()
    parts = {}
    for name, rows in dataset.evaluated.items():
        features = rows.all.numbers.cpu().double() * scaling.feature_scale + scaling.feature_mean
        targets = scaling.undo(rows.all.target.cpu().double())
        # A row without weight may have any value, such as -999, beside which nothing else would be seen.
        drawn = slice(None) if rows.all.weight is None else rows.all.weight.cpu().flatten() > 0
        columns = (features, targets, evaluation.predictions(name))
        parts[name] = tuple(column[drawn].numpy() for column in columns)
    # A curve is a function of one number alone.
    names = () if dataset.category_names else dataset.feature_names
    curve = _curve(info, outcome, evaluation, parts) if len(names) == 1 else None
    return draw_targets(
        RunPlots(
            title=info.config.name,
            feature_names=names,
            target_name=target,
            parts={name: (x, y[:, number], predicted[:, number]) for name, (x, y, predicted) in parts.items()},
            line=None if curve is None else (curve[0], curve[1][:, number]),
            bands={} if curve is None else curve[2],
            errors=_deviations(dataset),
            rows=each_row(metrics) if number == 0 else (),
            levels=levels,
            step=earlier,
        )
        for number, target in enumerate(dataset.target_names[:MOST_PLOTTED])
    )


def _deviations(dataset: Dataset) -> dict[str, Any]:
    """Return the standard deviations [rows] of the targets of each part, in the units of the file, as far as they are known."""
    if dataset.unit_deviation is None:
        return {}
    deviations = {}
    for name, rows in dataset.parts.items():
        weight = torch.ones(len(rows), 1) if rows.all.weight is None else rows.all.weight
        deviation = dataset.unit_deviation * float(dataset.scaling.target_scale) / weight.cpu().double().sqrt()
        # That of a logarithm is relative.
        factor = dataset.scaling.undo(rows.all.target.cpu().double()) if dataset.scaling.log_target else 1.0
        deviations[name] = (deviation * factor).flatten().numpy()
    return deviations


def _curve(info: RunInfo, outcome: Outcome, evaluation: Evaluation, parts: dict[str, Any]) -> Any:
    """Return x [m] and y [m, targets] of the fitted curve over the range of all rows, and the bands around it."""
    from runner.training.predictions import bands

    low = min(features.min() for features, _, _ in parts.values())
    high = max(features.max() for features, _, _ in parts.values())
    x = torch.linspace(float(low), float(high), LINE_POINTS, dtype=torch.float64).unsqueeze(1)
    scaled = info.dataset.scaling.features(x).to(info.dataset.parts["train"].all.numbers)
    around = bands(info, outcome, evaluation.model, scaled)
    edges = {name: (lower.numpy(), upper.numpy()) for name, (lower, upper) in around.items()}
    return x.flatten().numpy(), evaluation.predict(scaled).numpy(), edges
