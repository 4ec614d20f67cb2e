"""mpi_rl bench: its figures are made, agree with themselves and are written; none is judged."""

from pathlib import Path

import h5py
import pytest

from mpi_rl.bench.measure import columns, table
from tests.ranks import mpi_rl

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.mpi


def test_every_part_prints_a_table_and_fills_the_record(tmp_path):
    done = mpi_rl(
        "bench",
        "--job=jobs/smoke.toml",
        "--workers=1",
        "--envs=2",
        "--ranks=3",
        "--members=2",
        "--num-params=20000",
        "--seconds=0.5",
        f"--output={tmp_path / 'bench.h5'}",
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    for name in ("processes", "learn", "pushes_per_s", "idle_cpu", "pss_mb", "parked_cpu", "lost"):
        assert f"| {name} |" in done.stdout
    with h5py.File(tmp_path / "bench.h5") as file:
        assert sorted(file) == ["env", "group", "park", "server", "start", "train"]
        for part in ("env", "train", "start"):
            for name in ("limit", "ratio"):
                assert file[part][name][0] > 0
        train, server = file["train"], file["server"]
        assert train["ratio"][0] == pytest.approx(train["steps_per_s"][0] / train["limit"][0])
        phases = [train[name][0] for name in ("env", "act", "learn", "push", "wait")]
        assert sum(phases) == pytest.approx(1)
        names = zip(*(server[name].asstr() for name in ("transport", "push")))
        assert [*names] == [
            *(("window", "gradient"), ("window", "factors")),
            *(("message", "gradient"), ("message", "factors"), ("window", "gradient")),
        ]
        assert server["threads"][:].tolist() == [1] * 5
        assert server["up_bytes"][0] > 80_000 > server["up_bytes"][1]
        assert (server["down_bytes"][:4] > 80_000).all()
        assert server["bytes_per_s"][0] == pytest.approx(160_000 * server["pushes_per_s"][0])
        assert server["of_first"][0] == 1
        assert server["p50"][0] <= server["p95"][0] <= server["p99"][0]
        park = file["park"]
        assert park["parked"][0] == 1 and park["join_s"][0] > 0 and park["parked_mb"][0] > 1
        group = file["group"]
        assert group["pause_s"][:].tolist() == [0, 0.005] and (group["updates_per_s"][:] > 0).all()
        assert 0 <= group["lost"][0] <= group["conflicts"][0] + 0.5
        assert file.attrs["processor"] and file["start/pss_mb"].attrs["units"] == "MB"


@pytest.mark.parametrize(
    "words, message",
    [
        (["--envs=1,x"], "'1,x': must be whole numbers"),
        (["--ranks=0"], "'0': must be whole numbers"),
        (["--envs=1.5"], "'1.5': must be whole numbers"),
        (["--num-params=inf"], "'inf': must be whole numbers"),
        (["--push=factors,product"], "'factors,product': must be gradient or factors"),
        (["--launcher=mpirun -n 4", "env"], "must have {ranks}"),
        (["--seconds=0"], "0.0 is not in the range"),
        (["--launcher=/bin/false {ranks}", "env"], "status 1"),
        (["--launcher=no_such_program {ranks}", "env"], "must begin with a program that is here"),
        (["--launcher=mpirun '-n {ranks}", "env"], "No closing quotation"),
        (["speed"], "'speed' is not one of"),
        (["--job=none.toml"], "no such file"),
    ],
)
def test_bad_requests_are_one_line_and_status_2(tmp_path, words, message):
    done = mpi_rl("bench", *words, f"--output={tmp_path / 'bench.h5'}", cwd=ROOT)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "bench.h5").exists()


def test_what_a_row_lacks_is_left_open():
    found = columns([{"kind": "a", "rate": 2500}, {"rate": 0.25, "p50": 0.001}])
    assert found["kind"] == ["a", ""] and found["rate"] == [2500, 0.25]
    assert table(found).splitlines()[2:] == ["| a | 2,500 |  |", "|  | 0.250 | 1.00 ms |"]
