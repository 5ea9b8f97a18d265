"""`export RUN --format safetensors|onnx --output PATH`: a trained model as files that need no run directory."""

from __future__ import annotations

from runner.commands.arguments import ModelParser, print_lines

USAGE = """\
python -m runner export RUN --format safetensors|onnx --output PATH      a trained model as files that need no run directory

RUN is a run directory, or a sweep directory: then the seeds of its best setting. The predictions of what is written are compared
with those of the run before the command ends: for all rows of its table if that can be read, and for rows with missing values
and with categories that the training rows did not have.

formats
  safetensors          a new folder with the weights, model.safetensors, and all else that a prediction needs, model.json; predict
                       and runner.load take it like a run directory, with the same bits. Of a sweep, give one trial
  onnx                 a file PATH.onnx with the preprocessing inside, for runtimes of any language: an input for each column,
                       named as the column, [rows, 1], texts for categories (empty where missing) and float64 for numbers (nan
                       where missing; dates in seconds since 1970, UTC); an output for each target, named as the target, float64
                       [rows, 1] in its own units. Of a sweep it has the mean over the seeds

options
  --interval LEVEL     of onnx: for each target also price_lower and price_upper, the ends of intervals that hold the target of a
                       new row with this probability, such as 0.9; a folder of safetensors has what predict --interval needs
  --state STATE        last, best, or the number of a step; without it the state that the run reports
  --force              replace an export that exists

exit code   0 written · 1 it cannot be written, or predicts something else than the run · 2 the run cannot be exported
"""


def command(arguments: list[str]) -> int:
    """Export, print what was done, and return the exit code."""
    parser = ModelParser("export")
    parser.add_argument("--format", required=True, choices=["safetensors", "onnx"])
    parser.add_argument("--output", required=True)
    parser.add_argument("--interval", type=float)
    options = parser.read(arguments)
    from runner.commands.export.job import export

    print_lines(export(options))
    return 0
