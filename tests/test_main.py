"""The command line: what it refuses, and that refusing changes nothing."""

import dataclasses
import os

import numpy as np
import pytest
from PIL import Image

from mpi_rl.config import Config
from mpi_rl.envs.make import env_spec
from mpi_rl.records.runfile import read_run
from tests.ranks import ROOT, mpi_rl, mpirun
from tests.records import recorder

SMOKE = ROOT / "jobs" / "smoke.toml"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished smoke run."""
    folder = tmp_path_factory.mktemp("finished")
    assert mpirun(3, "train", SMOKE, "--output", "run.h5", cwd=folder).returncode == 0
    return folder / "run.h5"


def listing(folder):
    return sorted((path.name, path.stat().st_mtime_ns) for path in folder.rglob("*"))


@pytest.mark.mpi
@pytest.mark.parametrize(
    "num_ranks, arguments, message",
    [
        (1, [], "1 rank only"),
        (3, ["--n-stepz", 5], "No such option"),
        (3, ["--n-steps", "five"], "'five' is not a valid integer"),
        (3, ["--n-steps", 0], "n_steps = 0: must be at least 1"),
        (3, ["--num-workers", -1], "num_workers = -1: must be at least 0"),
        (3, ["--total-steps", 10], "total_steps = 10 is less than one rollout"),
        (3, ["--index", 2], "index = 2: job smoke has 2 run(s), indices 0 to 1"),
        (
            3,
            ["--env", "SpaceInvaders", "--network", "atari_2013"],
            "unknown; nearest: space_invaders",
        ),
        (3, ["--env", "pong"], "network = 'mlp' does not take the observations of env = 'pong'"),
        (3, ["--network", "atari_2013"], "of shape (4,): must be mlp"),
        (3, ["--env", "LunarLander-v2"], "unknown; nearest: LunarLander-v3"),
        (3, ["--num-workers", 1], "3 ranks give 2 worker(s), but job smoke has num_workers = 1"),
        (3, ["--num-workers", 7], "mpirun -n 8"),
        (3, ["--hidden-sizes", "12,x"], "must be whole numbers with commas"),
        (3, ["--transport", "pigeon"], "'pigeon' is not one of"),
    ],
)
def test_bad_input_is_one_line_and_status_2(tmp_path, num_ranks, arguments, message):
    result = mpirun(num_ranks, "train", SMOKE, *arguments, cwd=tmp_path)
    lines = [line for line in result.stderr.splitlines() if line.startswith("mpi_rl:")]
    assert result.returncode == 2 and len(lines) == 1 and message in lines[0], result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.mpi
def test_unusable_job_files_are_one_line(tmp_path):
    (tmp_path / "typo.toml").write_text("learning_rat = 1e-3\n")
    for job, message in (
        ("typo.toml", "unknown key 'learning_rat'; nearest valid: learning_rate"),
        ("missing.toml", "no such file"),
    ):
        result = mpirun(2, "train", job, cwd=tmp_path)
        assert result.returncode == 2 and message in result.stderr


def assert_cannot_write(result, path):
    """One line that names ``path``, and status 74."""
    assert result.returncode == os.EX_IOERR, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("mpi_rl:")]
    assert len(lines) == 1 and f"{path}: cannot be written (" in lines[0], result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.mpi
def test_an_output_folder_that_cannot_be_written_is_refused(tmp_path):
    # /sys is writable for nobody, not even for root, who may write to any ordinary folder.
    folder = "/sys/kernel" if os.geteuid() == 0 else "/etc"
    for path in (f"{folder}/run.h5", "/proc/nowhere/run.h5"):
        result = mpirun(3, "train", SMOKE, "--output", path, cwd=tmp_path)
        assert_cannot_write(result, path)
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words, output",
    [
        (("record", "RUN", "--max-steps", 5), "file/play.gif"),
        (("collect", SMOKE), "file/smoke.h5"),
        (("bench", "server", "--job", SMOKE), "file/bench.h5"),
    ],
)
def test_every_command_answers_a_file_that_cannot_be_written(finished, tmp_path, words, output):
    (tmp_path / "file").write_text("no folder")
    words = [finished if word == "RUN" else word for word in words]
    result = mpi_rl(*words, "--output", output, cwd=tmp_path)
    assert_cannot_write(result, output)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.mpi
def test_evaluations_that_find_no_space_are_one_line_and_the_file_stands(finished, tmp_path):
    path = tmp_path / "run.h5"
    path.write_bytes(finished.read_bytes())
    words = ("full", "evaluate", path, "--episodes", 2)
    result = mpirun(2, *words, cwd=tmp_path, program=(ROOT / "tests" / "faults.py",))
    assert_cannot_write(result, path)
    assert "(No space left on device); what it held is kept" in result.stderr
    assert path.read_bytes() == finished.read_bytes() and len(list(tmp_path.iterdir())) == 1


@pytest.mark.mpi
@pytest.mark.parametrize("num_ranks, words", [(1, ("list", SMOKE)), (3, ("train", SMOKE))])
def test_a_mistake_of_our_own_keeps_its_traceback(tmp_path, num_ranks, words):
    program = (ROOT / "tests" / "faults.py",)
    result = mpirun(num_ranks, "mistake", *words, cwd=tmp_path, program=program)
    assert result.returncode == 1, result.stderr
    assert "Traceback (most recent call last)" in result.stderr
    assert "ValueError: a mistake of our own" in result.stderr and "mpi_rl:" not in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.mpi
def test_a_finished_run_is_refused_and_kept(finished):
    before = finished.read_bytes()
    result = mpirun(3, "train", SMOKE, "--output", "run.h5", cwd=finished.parent)
    assert result.returncode == 2 and "run.h5: this run is complete; --overwrite" in result.stderr
    assert finished.read_bytes() == before and len(listing(finished.parent)) == 1


@pytest.mark.mpi
def test_overwrite_trains_again(finished):
    started = read_run(finished).attributes["ended"]
    result = mpirun(3, "train", SMOKE, "--output", "run.h5", "--overwrite", cwd=finished.parent)
    assert result.returncode == 0
    assert (
        read_run(finished).attributes["ended"] > started
        and read_run(finished).attributes["restart_count"] == 0
    )


@pytest.mark.mpi
def test_files_that_cannot_be_resumed_are_refused_and_kept(tmp_path, finished):
    (tmp_path / "text.h5").write_text("not HDF5")
    (tmp_path / "truncated.h5").write_bytes(finished.read_bytes()[:3000])
    newer = recorder(tmp_path / "newer.h5")
    newer.attributes["schema_version"] = 99
    newer.write("checkpointed")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for name, message in (
        ("text.h5", "not a readable run file"),
        ("truncated.h5", "perhaps truncated"),
        ("newer.h5", "schema version 99 is newer"),
    ):
        result = mpirun(3, "train", SMOKE, "--output", name, cwd=tmp_path)
        assert result.returncode == 2 and message in result.stderr, result.stderr
        assert len([line for line in result.stderr.splitlines() if line.startswith("mpi_rl:")]) == 1
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}


def test_a_misspelt_command_is_not_taken_for_a_job(tmp_path):
    result = mpi_rl("inspct", "x.h5", cwd=tmp_path)
    assert result.returncode == 2 and "No such command 'inspct'" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_dry_run_says_where_the_run_stands(tmp_path):
    def stands(*arguments):
        result = mpi_rl("train", *arguments, "--dry-run", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        return result.stdout

    line = "new: results/lunar_lander/0.h5, step 0 of 2,000,000 steps"
    assert stands() == f"{line}\n"
    assert stands("--server-threads", 4) == f"{line}, 4 server threads\n"
    path = tmp_path / "run.h5"
    config = Config(env="CartPole-v1", total_steps=2000, num_workers=2)
    record = recorder(path, **vars(config))
    spec = env_spec(config)
    record.attributes.update(env_spec=spec.to_json(), env_spec_hash=spec.hash())
    arguments = ("--env", "CartPole-v1", "--total-steps", 2000, "--output", path)
    for status in ("running", "checkpointed"):
        record.step = 120
        record.write(status)
        assert stands(*arguments) == f"unfinished: {path}, step 120 of 2,000 steps\n"
    record.step = 2000
    for status in ("failed", "complete"):
        record.write(status)
        assert stands(*arguments) == f"{status}: {path}, step 2,000 of 2,000 steps\n"
    assert stands(*arguments, "--overwrite").startswith("new")
    other = mpi_rl("train", *arguments, "--gamma", 0.5, "--dry-run", cwd=tmp_path)
    assert other.returncode == 2 and "complete, and of another configuration (gamma" in other.stderr


@pytest.mark.mpi
def test_more_threads_than_cores_are_one_line_and_the_run_goes_on(tmp_path):
    arguments = ("train", SMOKE, "--total-steps", 1000, "--output", "run.h5")
    assert "mpi_rl:" not in mpirun(2, *arguments, cwd=tmp_path).stderr
    threads = len(os.sched_getaffinity(0)) + 1
    result = mpirun(2, *arguments, "--overwrite", "--server-threads", threads, cwd=tmp_path)
    assert result.returncode == 0 and "Done: run.h5" in result.stdout
    lines = [line for line in result.stderr.splitlines() if line.startswith("mpi_rl:")]
    assert len(lines) == 1 and f"server_threads = {threads}, but rank 0 may use " in lines[0]


@pytest.mark.parametrize(
    "variables, line",
    [
        ({"SLURM_STEP_NUM_TASKS": "9"}, "srun started 9 rank(s) (SLURM_STEP_NUM_TASKS), but MPI ("),
        ({"OMPI_COMM_WORLD_SIZE": "3"}, "Open MPI's mpirun started 3 rank(s)"),
    ],
)
@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_ranks_that_mpi_does_not_see_are_refused_in_one_line(tmp_path, variables, line, command):
    """What a launcher of another family sets, without MPI's own part of it."""
    for rank in ("0", "1"):
        result = mpi_rl(command, SMOKE, cwd=tmp_path, variables={**variables, "SLURM_PROCID": rank})
        assert result.returncode == 2 and not list(tmp_path.iterdir())
        lines = [text for text in result.stderr.splitlines() if text.startswith("mpi_rl:")]
        assert len(lines) == (rank == "0"), result.stderr
        assert rank == "1" or line in lines[0] and "sees 1: launcher and library" in lines[0]


@pytest.mark.mpi
def test_a_job_file_or_an_option_alone_means_train(tmp_path):
    result = mpirun(3, SMOKE, "--output", "a b/run.h5", cwd=tmp_path)
    assert result.returncode == 0 and "-m mpi_rl plot 'a b/run.h5'" in result.stdout
    result = mpirun(1, "--index", 3, cwd=tmp_path)
    assert result.returncode == 2 and "index = 3: job lunar_lander has 1 run" in result.stderr


def test_list_prints_the_sweep(tmp_path):
    result = mpi_rl("list", ROOT / "jobs/space_invaders.toml", cwd=tmp_path)
    lines = result.stdout.splitlines()
    assert len(lines) == 12 and lines[0].split() == ["0", "learning_rate=0.0014", "seed=1"]
    assert lines[-1].split() == ["11", "learning_rate=0.0028", "seed=3"]
    assert mpi_rl("list", ROOT / "jobs/cartpole.toml", cwd=tmp_path).stdout.split()[0] == "0"
    assert mpi_rl("list", "nothing.toml", cwd=tmp_path).returncode == 2


def test_inspect_summarises_and_verifies(finished, tmp_path):
    summary = mpi_rl("inspect", finished, cwd=tmp_path)
    assert summary.returncode == 0
    for part in (
        "complete, job smoke[0], seed 1",
        "CartPole-v1",
        "of 4,000 steps",
        "2 (2 by window)",
    ):
        assert part in summary.stdout
    assert mpi_rl("inspect", "--verify", finished, cwd=tmp_path).stdout == f"{finished}: verified\n"
    (tmp_path / "bad.h5").write_bytes(finished.read_bytes()[:-100])
    bad = mpi_rl("inspect", "--verify", finished, tmp_path / "bad.h5", cwd=tmp_path)
    assert bad.returncode == 1 and "truncated" in bad.stdout
    assert mpi_rl("inspect", tmp_path / "none.h5", cwd=tmp_path).returncode == 2


def test_record_writes_an_animation(finished, tmp_path):
    result = mpi_rl(
        "record",
        finished,
        "--output",
        "play.gif",
        "--episodes",
        2,
        "--max-steps",
        100,
        cwd=tmp_path,
    )
    assert result.returncode == 0 and "2 episode(s)" in result.stdout, result.stderr
    with Image.open(tmp_path / "play.gif") as picture:
        assert picture.n_frames > 5 and picture.width == 300
        frames = []
        for number in (0, picture.n_frames - 1):
            picture.seek(number)
            frames.append(np.asarray(picture.convert("RGB")))
    assert not np.array_equal(*frames)
    again = mpi_rl(
        "record",
        finished,
        "--output",
        "again.gif",
        "--episodes",
        2,
        "--max-steps",
        100,
        cwd=tmp_path,
    )
    assert again.stdout.partition(":")[2] == result.stdout.partition(":")[2]
    assert (tmp_path / "play.gif").read_bytes() == (tmp_path / "again.gif").read_bytes()


def test_record_refuses_what_it_cannot_play(finished, tmp_path):
    unknown = mpi_rl(
        "record", finished, "--snapshot", 7, "--output", tmp_path / "x.gif", cwd=tmp_path
    )
    assert (
        unknown.returncode == 2 and "snapshot = '7'" in unknown.stderr and "last" in unknown.stderr
    )
    assert mpi_rl("record", "none.h5", cwd=tmp_path).returncode == 2
    for words, message in (
        ((finished, "--output", "play.mp4"), "output = 'play.mp4': must be a picture that moves"),
        ((tmp_path, "--output", "play.gif"), f"{tmp_path}: not a readable run file"),
    ):
        result = mpi_rl("record", *words, cwd=tmp_path)
        assert result.returncode == 2 and message in result.stderr
        assert result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.mpi
def test_help_names_every_command_and_every_setting_with_its_default(tmp_path):
    top = mpi_rl("--help", cwd=tmp_path).stdout
    assert all(command in top for command in ("train", "list", "inspect", "record"))
    result = mpirun(3, "train", "--help", cwd=tmp_path)
    assert result.returncode == 0 and result.stdout.count("Usage:") == 1
    words = " ".join(result.stdout.split())
    for item in dataclasses.fields(Config):
        assert f"--{item.name.replace('_', '-')}" in words
        assert item.metadata["help"] in words
    assert "[default: LunarLander-v3]" in words and "[default: 128,128]" in words
