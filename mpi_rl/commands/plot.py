"""The command ``plot``: a picture of run files' learning curves."""

from pathlib import Path

import click


@click.command("plot")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="picture  [default: beside the first file]",
)
def plot_runs(files: tuple[Path, ...], output: Path | None) -> None:
    """Draw episode returns of run FILES, single or collected, against steps and hours.

    Runs whose settings differ only in the seed are pooled: the thick line is their mean with a
    bootstrap interval, the thin lines are the runs. A run's curve is the running average of its
    episode returns with decay 0.95. Space Invaders is drawn beside figure 3 of the A3C paper and
    random play.
    """
    from mpi_rl.commands.learning_curves import plot
    from mpi_rl.records.runfile import read_runs

    runs = [run for path in files for run in read_runs(path)]
    if output is None:
        (first, *others) = files
        output = first.with_name("learning_curves.png") if others else first.with_suffix(".png")
    plot(runs, output)
    print(output)
