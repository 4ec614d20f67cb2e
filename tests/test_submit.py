"""``mpi_rl submit``: the sbatch lines, held in golden files, and what they leave out."""

import dataclasses
import shutil

import pytest

from mpi_rl.commands.submit import ranges, read_profile
from tests.ranks import ROOT, mpi_rl
from tests.records import recorder

GOLDEN = ROOT / "tests" / "golden"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with scripts and jobs, on a machine without Slurm."""
    for name in ("slurm", "jobs"):
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / "jobs" / "scaling.toml").write_text(
        'env = "CartPole-v1"\n[sweep]\nnum_workers = [4, 10, 20, 40]\nseed = [1, 2]\n'
    )
    (tmp_path / "jobs" / "threads.toml").write_text(
        'base = "scaling.toml"\n[sweep]\nserver_threads = [1, 4]\nnum_workers = [0, 10]\n'
    )
    (tmp_path / "slurm" / "profiles" / "here.env").write_text(
        "SBATCH_OPTIONS=--partition=long --account=me\nTHROTTLE=6\n"
    )
    monkeypatch.setenv("PATH", "/")
    for name in ("PROFILE", "SBATCH_OPTIONS", "THROTTLE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def complete_run(project, job, index, **settings):
    """Leave a complete run of CartPole where ``job`` expects it."""
    from mpi_rl.envs.make import env_spec
    from mpi_rl.jobs import load_job

    config = load_job(str(project / "jobs" / f"{job}.toml")).config(index, {})
    config = dataclasses.replace(config, **settings)
    path = project / "results" / job / f"{index}.h5"
    path.parent.mkdir(parents=True, exist_ok=True)
    record = recorder(path, **vars(config))
    spec = env_spec(config)
    record.attributes.update(job=job, index=index, env_spec=spec.to_json())
    record.attributes["env_spec_hash"] = spec.hash()
    record.step = config.total_steps
    record.finish("complete")
    return path


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("space_invaders", ["jobs/space_invaders.toml"]),
        (
            "small_budget",
            ["jobs/space_invaders.toml", "--total-steps", 20000, "--ntasks", 41, "--throttle", 2],
        ),
        ("scaling", ["jobs/scaling.toml", "--profile", "here", "--sbatch=--time=1:00:00"]),
        ("threads", ["jobs/threads.toml"]),
        ("smoke", ["jobs/smoke.toml", "--hidden-sizes", "8,8", "--no-separate-trunks"]),
    ],
)
def test_dry_run_prints_the_golden_lines(project, name, arguments):
    result = mpi_rl("submit", *arguments, "--dry-run", cwd=project)
    assert result.returncode == 0, result.stderr
    assert result.stdout == (GOLDEN / f"submit_{name}.txt").read_text()


def test_every_further_thread_of_the_server_is_a_task_without_a_rank(project):
    words = ("submit", "jobs/smoke.toml", "--server-threads", 3, "--dry-run")
    assert "--ntasks=11 slurm/" in mpi_rl(*words, "--ntasks", 9, cwd=project).stdout
    assert "--ntasks=7 slurm/" in mpi_rl(*words, "--num-workers", 4, cwd=project).stdout
    script = project / "slurm" / "space_invaders.sh"
    script.write_text(script.read_text().replace("#SBATCH --ntasks=17\n", ""))
    result = mpi_rl(*words, cwd=project)
    assert result.returncode == 2 and f"{script.relative_to(project)}: no line" in result.stderr


def test_groups_get_one_node_unless_told_otherwise(project):
    words = ("submit", "jobs/lunar_lander_thesis_genkidama.toml", "--dry-run")
    result = mpi_rl(*words, "--sbatch=--nodes=2", cwd=project)
    assert "--ntasks=9 --nodes=1 --nodes=2 slurm/" in result.stdout  # sbatch takes the last


def test_complete_runs_are_left_out(project):
    for index in (0, 1, 5):
        complete_run(project, "scaling", index)
    result = mpi_rl("submit", "jobs/scaling.toml", "--dry-run", cwd=project)
    assert "8 run(s), 3 complete, 0 in the queue, 5 to submit" in result.stdout, result.stderr
    assert "--array=2-3 --ntasks=11" in result.stdout
    assert "--array=4 --ntasks=21" in result.stdout and "--ntasks=5 " not in result.stdout
    for index in (2, 3, 4, 6, 7):
        complete_run(project, "scaling", index)
    result = mpi_rl("submit", "jobs/scaling.toml", cwd=project)
    assert result.returncode == 0 and "8 complete, 0 in the queue, 0 to submit" in result.stdout
    assert "python -m mpi_rl collect jobs/scaling.toml" in result.stdout
    result = mpi_rl("submit", "jobs/smoke.toml", "--ntasks", 4, "--dry-run", cwd=project)
    assert "--array=0-1 --ntasks=4" in result.stdout
    complete_run(project, "smoke", 1, num_workers=2)
    result = mpi_rl("submit", "jobs/smoke.toml", "--ntasks", 4, "--dry-run", cwd=project)
    assert result.returncode == 2 and "num_workers: 2 -> 3" in result.stderr


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["jobs/scaling.toml", "--ntasks", 9], "run 0 has num_workers = 4, which takes 5"),
        (["jobs/scaling.toml", "--profile", "there"], "there are default, here, perlmutter"),
        (["jobs/scaling.toml", "--seed", "x"], "is not a valid integer"),
        (
            ["jobs/smoke.toml", "--total-steps", 5000],
            "no sbatch here: JOB=jobs/smoke.toml bash slurm/space_invaders.sh --total-steps 5000",
        ),
    ],
)
def test_bad_input_is_one_line_and_status_2(project, arguments, message):
    result = mpi_rl("submit", *arguments, cwd=project)
    assert result.returncode == 2 and message in result.stderr and "Traceback" not in result.stderr


def test_a_complete_run_of_other_settings_stops_the_submission(project):
    complete_run(project, "smoke", 0, gamma=0.5)
    result = mpi_rl("submit", "jobs/smoke.toml", "--dry-run", cwd=project)
    assert result.returncode == 2
    assert "complete, and of another configuration (gamma: 0.5 -> 0.995)" in result.stderr


def test_submitting_from_elsewhere_is_refused(project, tmp_path_factory):
    result = mpi_rl("submit", project / "jobs" / "smoke.toml", cwd=tmp_path_factory.mktemp("x"))
    assert result.returncode == 2 and "submit from the project's root" in result.stderr


def test_ranges_are_written_as_sbatch_has_them():
    assert ranges([0]) == "0" and ranges([3, 1, 2, 7, 9, 10]) == "1-3,7,9-10"


def test_every_profile_sets_only_what_default_has(monkeypatch):
    monkeypatch.chdir(ROOT)
    for path in (ROOT / "slurm" / "profiles").glob("*.env"):
        assert read_profile(path.stem).keys() <= read_profile("default").keys()
