"""``mpi_rl collect``: what is merged, what is refused, and that nothing is lost."""

import json

import numpy as np
import pytest

from mpi_rl.commands.collect import collect
from mpi_rl.commands.inspect import summary, verify_run
from mpi_rl.config import make_config
from mpi_rl.errors import UserError
from mpi_rl.jobs import Job
from mpi_rl.records.runfile import RESOLUTION, read_run, read_runs, write_run
from tests.ranks import mpi_rl
from tests.records import header, recorder

SETTINGS = dict(env="CartPole-v1", n_steps=50, total_steps=100, interval_period_steps=100)
JOB = Job(
    "test",
    SETTINGS,
    [dict(learning_rate=rate, seed=seed) for rate in (0.1, 0.2) for seed in (1, 2)],
)


def run_file(folder, index, status="complete", **changes):
    """Write a run of two updates, as run ``index`` of JOB with ``changes``."""
    from mpi_rl.envs.make import env_spec

    settings = {**SETTINGS, **JOB.sweep[index], "num_workers": 2, **changes}
    config = make_config(settings, "test")
    folder.mkdir(exist_ok=True)
    record = recorder(folder / f"{index}.h5", **vars(config))
    record.attributes.update(index=index, env_spec=env_spec(config).to_json())
    for number in range(2):
        record.push(number, header(version=number, returns=[index], lengths=[20]), 0.1)
    record.finish(status)


@pytest.fixture
def folder(tmp_path):
    """Four complete runs."""
    for index in range(4):
        run_file(tmp_path / "runs", index)
    return tmp_path / "runs"


def test_all_runs_and_their_settings_are_in_the_file(folder):
    output = folder.parent / "test.h5"
    assert collect(JOB, folder, output) == []
    runs = read_runs(output)
    for index, run in enumerate(runs):
        single = read_run(folder / f"{index}.h5")
        assert run.attributes == single.attributes
        for name, columns in single.tables.items():
            for key, column in columns.items():
                np.testing.assert_array_equal(run.tables[name][key], column)
        np.testing.assert_array_equal(run.snapshot_params, single.snapshot_params)
    assert verify_run(output) == [] and summary(output).count("job test") == 4
    import h5py

    with h5py.File(output) as file:
        assert file.attrs["job"] == "test" and file.attrs["missing"] == "[]"
        settings = file["settings"]
        assert settings["index"][:].tolist() == [0, 1, 2, 3]
        assert settings["learning_rate"][:].tolist() == [0.1, 0.1, 0.2, 0.2]
        assert settings["seed"][:].tolist() == [1, 2, 1, 2]
        assert settings["env"].asstr()[:].tolist() == ["CartPole-v1"] * 4
        assert settings["hidden_sizes"].asstr()[0] == "[128, 128]"


@pytest.mark.parametrize("keep", [("best", "last"), ()])
def test_a_small_collection_is_rounded_and_keeps_few_parameters(tmp_path, keep):
    folder, output = tmp_path / "runs", tmp_path / "small.h5"
    rng = np.random.default_rng(0)
    for index in range(4):
        run_file(folder, index, snapshot_period_steps=50)
        run = read_run(folder / f"{index}.h5")
        assert run.tables["snapshots"]["kind"].tolist() == ["periodic", "periodic", "last"]
        played = rng.normal(100, 50, (3, 20))
        lengths, seed = np.full((3, 20), 9), np.array([0])
        run.evaluations["sampled"] = {"returns": played, "lengths": lengths, "seed": seed}
        write_run(folder / f"{index}.h5", run)
    assert collect(JOB, folder, output, keep) == []
    assert verify_run(output) == []
    for index, small in enumerate(read_runs(output)):
        run = read_run(folder / f"{index}.h5")
        assert small.attributes == run.attributes
        for name, columns in run.tables.items():
            for key, column in columns.items():
                kept = small.tables[name][key]
                if key in ("wall_time_s", "episode_return"):
                    np.testing.assert_allclose(kept, column, rtol=0, atol=RESOLUTION)
                else:
                    np.testing.assert_array_equal(kept, column)
        for key, values in run.evaluations["sampled"].items():
            tolerance = RESOLUTION if key == "returns" else 0
            np.testing.assert_allclose(
                small.evaluations["sampled"][key], values, rtol=0, atol=tolerance
            )
        if keep:
            np.testing.assert_array_equal(small.snapshot_params[-1], run.snapshot_params[-1])
        assert np.isnan(small.snapshot_params[: -1 if keep else None]).all()


def test_collecting_again_gives_the_same_bytes_even_from_the_collection_alone(folder):
    output = folder.parent / "test.h5"
    collect(JOB, folder, output)
    first = output.read_bytes()
    assert collect(JOB, folder, output) == [] and output.read_bytes() == first
    for index in (0, 2):
        (folder / f"{index}.h5").unlink()
    assert collect(JOB, folder, output) == [] and len(read_runs(output)) == 4
    run_file(folder, 0, status="running")  # trained again, and not yet complete
    assert collect(JOB, folder, output) == []
    assert read_runs(output)[0].attributes["status"] == "complete"


def test_files_from_before_a_setting_have_its_default(folder):
    for index in range(4):
        run = read_run(folder / f"{index}.h5")
        config = json.loads(run.attributes["config"])
        del config["exchange_dtype"]
        run.attributes["config"] = json.dumps(config)
        write_run(folder / f"{index}.h5", run)
    assert collect(JOB, folder, folder.parent / "test.h5") == []


def test_what_is_missing_is_named_and_comes_later(folder):
    output = folder.parent / "test.h5"
    (folder / "0.h5").unlink()
    run_file(folder, 1, status="checkpointed")
    (folder / "2.h5").write_bytes((folder / "2.h5").read_bytes()[:5000])
    problems = collect(JOB, folder, output)
    assert [problem.partition(":")[0] for problem in problems] == ["index 0", "index 1", "index 2"]
    assert "no such run file" in problems[0] and "checkpointed at step 100 of 100" in problems[1]
    assert "not a readable run file" in problems[2]
    assert [run.attributes["index"] for run in read_runs(output)] == [3]
    for index in (0, 1, 2):
        run_file(folder, index)
    assert collect(JOB, folder, output) == []
    assert [run.attributes["index"] for run in read_runs(output)] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(gamma=0.5), "differs from run 0 in more than the sweep (gamma: 0.995 -> 0.5)"),
        (dict(num_workers=3), "num_workers: 2 -> 3"),
        (dict(seed=7), "not what the job's sweep says (seed: 1 -> 7)"),
        (dict(learning_rate=0.1), "learning_rate: 0.2 -> 0.1"),
    ],
)
def test_runs_of_another_configuration_are_left_out(folder, changes, message):
    run_file(folder, 2, **changes)
    problems = collect(JOB, folder, folder.parent / "test.h5")
    assert len(problems) == 1 and "index 2" in problems[0] and message in problems[0], problems


def test_collected_runs_are_not_replaced_by_others(folder):
    output = folder.parent / "test.h5"
    collect(JOB, folder, output)
    before = output.read_bytes()
    for index in range(4):
        (folder / f"{index}.h5").unlink()
    run_file(folder, 0, gamma=0.5)
    with pytest.raises(UserError, match=r"run\(s\) 1, 2, 3 do not go with .* move .* away first"):
        collect(JOB, folder, output)
    assert output.read_bytes() == before
    with pytest.raises(UserError, match="holds runs of test, not of other"):
        collect(Job("other", {}, JOB.sweep), folder, output)
    run_file(folder, 1)
    with pytest.raises(UserError, match="1.h5: a run file, not a collection"):
        collect(JOB, folder, folder / "1.h5")
    assert read_run(folder / "1.h5").attributes["index"] == 1


def test_the_command_names_what_is_missing_with_status_1(folder):
    (folder.parent / "test.toml").write_text(
        'env = "CartPole-v1"\n[sweep]\nlearning_rate = [0.1, 0.2]\nseed = [1, 2]\n'
    )
    (folder / "3.h5").unlink()
    arguments = ("collect", "test.toml", "--folder", folder)
    result = mpi_rl(*arguments, cwd=folder.parent)
    assert result.returncode == 1 and "results/test.h5: 3 of 4 run(s)" in result.stdout
    assert "missing: index 3" in result.stderr
    run_file(folder, 3)
    assert mpi_rl(*arguments, cwd=folder.parent).returncode == 0
    figure = mpi_rl("plot", "results/test.h5", cwd=folder.parent)
    assert figure.returncode == 0 and (folder.parent / "results" / "test.png").exists()
    result = mpi_rl("record", "results/test.h5", cwd=folder.parent)
    assert result.returncode == 2 and "a collection of 4 runs" in result.stderr
