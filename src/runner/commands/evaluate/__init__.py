"""`evaluate RUN --input FILE`: the metrics of a trained model on rows that it has not seen."""

from __future__ import annotations

from runner.commands.arguments import ModelParser, print_lines

USAGE = """\
python -m runner evaluate RUN --input held_out.csv [key=value …]      metrics of a trained model on other rows

RUN is a run directory or an export; or a sweep directory, whose predictions are the mean over the seeds of its best
setting. The input is read as by predict, and must have the targets; rows without one are left out. Where it has the column
of data.weight or data.sigma, the metrics are weighted as in training.

options
  --by COLUMN          metrics for each value of a column as well, up to 100 values; it need not be a feature
  --importance N       permutation importance: how much the rmse grows when the values of a feature are shuffled among the rows,
                       mean and 95 % interval over N shuffles, of at most 100,000 rows drawn at random
  --plots FOLDER       predicted against true values, or data and fit for a single feature, and residuals, as PNG files
  --output FILE        all numbers as JSON; - is standard output
  --state STATE        last, best, or the number of a step; without it the state that the run reports
  --device DEVICE      auto, cpu, cuda, rocm, mps or xpu (auto)
  --force              replace an output that exists, and write into a folder that exists

keys
  as for predict: predict.unseen, data.missing, and those that say how the input is written; see python -m runner predict --help

exit code   0 evaluated · 1 a result cannot be written · 2 the run or the input cannot be used
"""


def command(arguments: list[str]) -> int:
    """Evaluate, print the metrics, write what is asked for, and return the exit code."""
    parser = ModelParser("evaluate")
    parser.add_rows()
    parser.add_argument("--by")
    parser.add_argument("--importance", type=int)
    parser.add_argument("--plots")
    parser.add_argument("--output")
    options = parser.read(arguments)
    from runner.commands.evaluate.job import evaluate

    print_lines(evaluate(options), output=options.output)
    return 0
