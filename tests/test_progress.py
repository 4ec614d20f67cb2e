import math

import pytest

from mpi_rl.server.progress import Moment, Progress, plain_line, time_left


def moment(**changes):
    return Moment(
        **{
            **dict(
                step=250_000,
                budget="1,000,000 steps",
                spent=0.25,
                version=2000,
                num_episodes=321,
                mean_return=-12.34,
                mean_staleness=6.9,
                num_active_workers=8,
                num_workers=8,
                phases=dict(env=0.5, act=0.1, learn=0.2, push=0.0, wait=0.2),
                server_load=0.03,
            ),
            **changes,
        }
    )


def test_plain_line_names_what_users_look_for():
    line = plain_line(moment(), 5000.0, "0:02:30")
    for part in (
        "250,000 steps",
        "25.0 %",
        "5,000 steps/s",
        "0:02:30 left",
        "return    -12.3",
        "staleness  6.90",
        "workers 8",
    ):
        assert part in line


@pytest.mark.parametrize(
    "spent, lately, expected", [(0, 0.0, "?"), (0, 0.002, "2:46:40"), (1.5, 0.002, "0:00:00")]
)
def test_time_left(spent, lately, expected):
    assert time_left(spent, lately, 20.0) == expected


def test_plain_lines_come_once_per_period_and_at_the_end(capsys):
    with Progress("title") as progress:
        for step in range(5):
            progress.show(moment(step=1000 * step, spent=step / 1000, mean_return=math.nan))
        progress.show(moment(step=10**6, spent=1.0), last=True)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and "?" not in lines[0] and "100.0 %" in lines[1]
