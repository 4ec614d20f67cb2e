"""The table and picture of staleness, from made-up runs."""

import numpy as np
import pytest

from analysis.staleness import distribution, write
from mpi_rl.records.runfile import read_run
from tests.records import header, recorder


def made(path, seed, level, **settings):
    """A run of two workers, whose second pushes what is three updates old, or has it dropped."""
    settings = dict(seed=seed, num_workers=2, learning_rate=5e-4, **settings)
    record = recorder(path, 2, **settings)
    bound = settings.get("max_staleness", 0)
    for number in range(40):
        late, version = number % 2, record.version
        head = header(version=max(0, version - 3 * late), returns=[level + seed], lengths=[50])
        is_dropped = bool(0 < bound < 3 and late)
        record.push(late, head, 5e-4, is_update=not is_dropped, is_dropped=is_dropped)
    record.attributes["index"] = seed + 10 * len(settings)
    record.write("complete")
    return read_run(path)


@pytest.fixture
def runs(tmp_path):
    found = []
    for seed in (1, 2, 3, 4):
        found.append(made(tmp_path / f"p{seed}.h5", seed, 100.0))
        found.append(made(tmp_path / f"d{seed}.h5", seed, 50.0, max_staleness=2))
    return found


def test_staleness_is_counted_over_all_runs_and_workers(runs):
    plain = [run for run in runs if run.config.max_staleness == 0]
    # The very first late push can be one update old at most.
    assert distribution(plain).tolist() == [80, 4, 0, 76]


def test_the_table_has_each_treatment_beside_the_same_untreated(runs, tmp_path):
    table, picture = write(runs, tmp_path / "out")
    rows = [line for line in table.read_text().splitlines() if line.startswith("| 2 workers")]
    assert len(rows) == 2 and picture.stat().st_size > 20_000
    assert "0.0 to 2.9 | 0.0 % | 102.5" in rows[0] and "101, 102, 103, 104" in rows[0]
    assert rows[1].startswith("| 2 workers, none older than 2 | 0.0 | 0 | 0 |")
    assert "50.0 %" in rows[1] and rows[1].endswith(f"| 0.00 ({2 / 70:.3f}) |")
    assert np.isfinite(float(rows[1].split("|")[7].split()[0]))
