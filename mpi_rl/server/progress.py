"""What a person sees of a run: a live view on a terminal, one plain line per period elsewhere."""

import math
import os
import sys
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from mpi_rl.records.timing import in_words

PLAIN_PERIOD_S = 10.0
RATE_WINDOW_S = 20.0  # steps/s are measured over this long
LAUNCHERS = ("mpirun", "mpiexec", "mpiexec.hydra", "prterun", "orterun", "srun")
DAEMONS = ("prted", "orted")  # give their ranks terminals of their own, far from any person


@dataclass(frozen=True)
class Moment:
    """The numbers of one moment of a run."""

    step: int
    budget: str  # in words
    spent: float  # share of the budget; more than 1 where it is overrun
    version: int
    num_episodes: int
    mean_return: float  # of the last 100 episodes; nan before the first
    mean_staleness: float  # updates
    num_active_workers: int
    num_workers: int
    phases: dict[str, float]  # share of each in the workers' time so far
    server_load: float  # share of its time that the server was at work


class Progress:
    """Shows moments of a run. Use as a context manager: leaving it restores the terminal."""

    def __init__(self, title: str) -> None:
        terminal = launcher_terminal()
        self._title, self._shown_s = title, -math.inf
        self._recent: deque[tuple[float, Moment]] = deque()
        self._live: Live | None = None
        if terminal is not None and os.environ.get("TERM", "dumb") != "dumb":
            console = Console(
                file=sys.stdout,
                force_terminal=True,
                width=terminal.columns or 80,
                height=terminal.lines or 24,
            )
            self._live = Live(
                console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
            )

    def __enter__(self) -> "Progress":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live:
            self._live.stop()

    def show(self, moment: Moment, last: bool = False) -> None:
        """Show ``moment``; as plain lines once per period only, and when it is the ``last``."""
        now = monotonic()
        self._recent.append((now, moment))
        while now - self._recent[0][0] > RATE_WINDOW_S and len(self._recent) > 2:
            self._recent.popleft()
        elapsed, old = now - self._recent[0][0], self._recent[0][1]
        steps_per_s = (moment.step - old.step) / elapsed if elapsed > 0 else 0.0
        left = time_left(moment.spent, moment.spent - old.spent, elapsed)
        if self._live:
            self._live.update(self._view(moment, steps_per_s, left), refresh=True)
        elif last or (elapsed > 0 and now - self._shown_s >= PLAIN_PERIOD_S):
            self._shown_s = now
            print(plain_line(moment, steps_per_s, left), flush=True)

    def _view(self, moment: Moment, steps_per_s: float, left: str) -> Table:
        table = Table(
            title=self._title,
            title_justify="left",
            box=None,
            show_header=False,
            padding=(0, 2, 0, 0),
        )
        table.add_column(style="dim")
        table.add_column()
        bar = Table.grid(padding=(0, 2, 0, 0))
        bar.add_row(
            ProgressBar(1, min(moment.spent, 1), width=30),
            f"{100 * moment.spent:.1f} %",
        )
        table.add_row("steps", f"{moment.step:,}; the budget is {moment.budget}")
        table.add_row("", bar)
        table.add_row("speed", f"{steps_per_s:,.0f} steps/s, {left} left")
        table.add_row(
            "return",
            f"{moment.mean_return:.1f}, mean of the last 100 of {moment.num_episodes:,}"
            " episodes",
        )
        table.add_row(
            "staleness", f"{moment.mean_staleness:.2f} updates, mean of {moment.version:,}"
        )
        table.add_row("workers", f"{moment.num_active_workers} of {moment.num_workers} active")
        table.add_row("time", in_words(moment.phases, moment.server_load))
        return table


def plain_line(moment: Moment, steps_per_s: float, left: str) -> str:
    """Return ``moment`` as one line."""
    return (
        f"{moment.step:>11,} steps {100 * moment.spent:5.1f} % "
        f" {steps_per_s:>7,.0f} steps/s  {left:>8} left  return"
        f" {moment.mean_return:8.1f}  episodes {moment.num_episodes:>7,}  staleness"
        f" {moment.mean_staleness:5.2f}  workers {moment.num_active_workers}"
    )


def time_left(spent: float, lately: float, seconds: float) -> str:
    """Return the time to the budget's end as h:mm:ss, or ? before it is known.

    ``spent`` is the share of the budget spent so far, ``lately`` that of the last ``seconds``.
    """
    if lately <= 0:
        return "?"
    seconds = round(max(0.0, 1 - spent) * seconds / lately)
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def launcher_terminal() -> os.terminal_size | None:
    """Return the size of the terminal that the run's output ends on, or None.

    Launchers give their ranks pipes or a terminal of their own, so it is the launcher's standard
    output that counts; without a launcher, ours.
    """
    pid = os.getpid()
    while pid > 1:
        try:
            name, _, rest = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(")")
            if name in DAEMONS:
                return None
            if name in LAUNCHERS:
                return _terminal_size(f"/proc/{pid}/fd/1")
            pid = int(rest.split()[1])
        except (OSError, ValueError):
            break
    return _terminal_size("/proc/self/fd/1")


def _terminal_size(path: str) -> os.terminal_size | None:
    try:
        handle = os.open(path, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return os.get_terminal_size(handle)
    except OSError:
        return None
    finally:
        os.close(handle)
