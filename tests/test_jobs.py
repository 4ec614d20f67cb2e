from pathlib import Path

import pytest

from mpi_rl.algorithms.choice import check
from mpi_rl.config import Config
from mpi_rl.errors import UserError
from mpi_rl.jobs import load_job

JOBS = Path(__file__).parents[1] / "jobs"


def write(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return str(path)


def test_lunar_lander_job_is_the_default_configuration():
    job = load_job(str(JOBS / "lunar_lander.toml"))
    assert job.name == load_job(None).name
    assert job.config(0, {}) == Config() == load_job(None).config(0, {})


@pytest.mark.parametrize("path", sorted(JOBS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_run_of_every_job_is_valid(path):
    job = load_job(str(path))
    configs = [check(job.config(index, {})) for index in range(len(job.sweep))]
    assert len(set(configs)) == len(configs)


def test_sweep_is_the_product_in_file_order(tmp_path):
    job = load_job(
        write(tmp_path, "gamma = 0.9\n[sweep]\nlearning_rate = [1e-3, 1e-4]\nseed = [1, 2, 3]\n")
    )
    assert [(run["learning_rate"], run["seed"]) for run in job.sweep] == [
        (1e-3, 1),
        (1e-3, 2),
        (1e-3, 3),
        (1e-4, 1),
        (1e-4, 2),
        (1e-4, 3),
    ]
    assert job.config(4, {}) == Config(gamma=0.9, learning_rate=1e-4, seed=2)
    assert job.config(4, {"seed": 7}).seed == 7  # the command line wins


@pytest.mark.parametrize(
    "text, message",
    [
        ("learning_rat = 1", "unknown key 'learning_rat'; nearest valid: learning_rate"),
        ("zzzzzz = 1", "unknown key 'zzzzzz'; valid: env, "),
        ("n_steps = 'five'", "n_steps = 'five': must be a whole number"),
        ("n_steps = 5.0", "n_steps = 5.0: must be a whole number"),
        ("n_steps = true", "n_steps = True: must be a whole number"),
        ("gamma = 'high'", "gamma = 'high': must be a number"),
        ("gamma = nan", "gamma = nan: must be a number"),
        ("clip_rewards = 1", "clip_rewards = 1: must be true or false"),
        ("env = 3", "env = 3: must be a text"),
        ("hidden_sizes = 128", "hidden_sizes = 128: must be a list of whole numbers"),
        ("hidden_sizes = []", r"hidden_sizes = \[\]: must be a list of whole numbers"),
        ("hidden_sizes = [128, 0]", "hidden_sizes = 0: must be at least 1"),
        ("n_steps = 0", "n_steps = 0: must be at least 1"),
        ("total_steps = -5", "total_steps = -5: must be at least 0"),
        ("envs_per_worker = 65", "envs_per_worker = 65: must be at most 64"),
        ("learning_rate = 0", "learning_rate = 0.0: must be above 0"),
        ("gamma = 1.5", "gamma = 1.5: must be at most 1"),
        ("seed = 18446744073709551616", "must be at most 9223372036854775807"),
        ("max_episode_frames = 3000000000", "must be at most 1000000000"),
        ("update_rule = 'adamw'", "update_rule = 'adamw': must be one of rmsprop, adam, sgd"),
        ("exchange_dtype = 'float16'", "exchange_dtype = 'float16' with algorithm = 'a3c'"),
        ("algorithm = 'genkidama'\ndelayed_pull = true", "delayed_pull = True with .*= 'a3c'"),
        ("beta = 0.5", "beta = 0.5 with algorithm = 'a3c'.* must be 0.0, or algorithm ="),
        ("total_steps = 100", "total_steps = 100 is less than one rollout: .* = 120"),
    ],
)
def test_bad_settings_are_named_with_what_would_be_right(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        load_job(write(tmp_path, text)).config(0, {})


@pytest.mark.parametrize(
    "text, message",
    [
        ("sweep = 3", "must be a table"),
        ("[sweep]\nsede = [1]", "unknown key 'sede'; nearest valid: seed"),
        ("[sweeps]\nseed = [1]", "unknown key 'sweeps'; nearest valid: sweep"),
        ("[sweep]\nseed = 1", "seed = 1: must be a list"),
        ("[sweep]\nseed = []", r"seed = \[\]: must be a list"),
        ("seed = 1\n[sweep]\nseed = [1, 2]", "both a setting and a .sweep. axis"),
        ("[sweep]\nrow = [{ gamma = 0.9 }, { sede = 1 }]", "row: unknown key 'sede'"),
        ("[sweep]\nrow = [{ gamma = 0.9 }, { seed = 1 }]", "row has tables of different settings"),
        ("[sweep]\nrow = [{ gamma = 0.9 }, 1]", "row mixes tables and 1: must be all tables"),
        ("[sweep]\nrow = [{ seed = 1 }]\nseed = [1]", "seed is .* part of two axes"),
        ("seed = ", "mine.toml"),
    ],
)
def test_bad_job_files_are_refused(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        load_job(write(tmp_path, text))


def test_settings_that_vary_together_are_one_axis(tmp_path):
    text = (
        "[sweep]\nrow = [{ gamma = 0.9, n_steps = 5 }, { gamma = 0.8, n_steps = 7 }]\nseed = [1, 2]"
    )
    job = load_job(write(tmp_path, text))
    values = [(run["gamma"], run["n_steps"], run["seed"]) for run in job.sweep]
    assert values == [(0.9, 5, 1), (0.9, 5, 2), (0.8, 7, 1), (0.8, 7, 2)]


def test_a_base_gives_its_settings_but_not_its_sweep_and_own_settings_win(tmp_path):
    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "first.toml").write_text("gamma = 0.5\nn_steps = 7\nseed = 3\n")
    (tmp_path / "common" / "second.toml").write_text(
        'base = "first.toml"\ngamma = 0.6\nentropy_coef = 0.5\n[sweep]\nnum_workers = [2, 3]\n'
    )
    text = 'base = "common/second.toml"\nentropy_coef = 0.25\n[sweep]\nseed = [1, 2]\n'
    job = load_job(write(tmp_path, text))
    assert job.name == "mine" and job.sweep == [{"seed": 1}, {"seed": 2}]
    assert [job.config(index, {}) for index in (0, 1)] == [
        Config(gamma=0.6, n_steps=7, entropy_coef=0.25, seed=seed) for seed in (1, 2)
    ]
    assert job.config(0, {"gamma": 0.1, "seed": 9}) == Config(
        gamma=0.1, n_steps=7, entropy_coef=0.25, seed=9
    )  # the command line wins


def test_tables_of_an_axis_replace_what_the_base_fixes(tmp_path):
    (tmp_path / "other.toml").write_text("gamma = 0.5\nn_steps = 7\n")
    rows = "row = [{ gamma = 0.9, seed = 2 }, { gamma = 0.8, seed = 3 }]"
    job = load_job(write(tmp_path, f'base = "other.toml"\n[sweep]\n{rows}\n'))
    assert job.config(1, {}) == Config(gamma=0.8, n_steps=7, seed=3)


@pytest.mark.parametrize(
    "text, other, message",
    [
        ('base = "none.toml"', "", "mine.toml: base '.*/none.toml': no such file; must be a path"),
        ("base = 3", "", "mine.toml: base = 3: must be the path of a job file"),
        ('base = ""', "", "mine.toml: base = '': must be the path of a job file"),
        ('base = "other.toml"', "seed =", "mine.toml: base '.*/other.toml': Invalid value"),
        ('base = "other.toml"', "sede = 1", "other.toml: unknown key 'sede'; nearest valid: seed"),
        ('base = "other.toml"', "n_steps = 0", "n_steps = 0: must be at least 1"),
        ('bass = "other.toml"', "", "mine.toml: unknown key 'bass'; nearest valid: base"),
        ('base = "mine.toml"', "", "'mine.toml': a circle, .*/mine.toml -> .*/mine.toml: one of"),
        (
            'base = "other.toml"',
            'base = "./mine.toml"',
            "other.toml: base = './mine.toml': a circle, .*/mine.toml -> .*/other.toml -> .*/mine",
        ),
        ('base = "other.toml"\n[sweep]\nbase = ["x.toml"]', "", ".sweep.: unknown key 'base'"),
    ],
)
def test_a_base_that_cannot_be_taken_over_is_refused_in_one_line(tmp_path, text, other, message):
    (tmp_path / "other.toml").write_text(other)
    with pytest.raises(UserError, match=message) as caught:
        load_job(write(tmp_path, text)).config(0, {})
    assert "\n" not in str(caught.value)


def test_missing_job_file_says_where_jobs_are():
    with pytest.raises(
        UserError, match="'jobs/nothing.toml': no such file; job files are in jobs/"
    ):
        load_job("jobs/nothing.toml")


@pytest.mark.parametrize("index", [-1, 6, 100])
def test_index_outside_the_sweep(tmp_path, index):
    job = load_job(write(tmp_path, "[sweep]\nseed = [1, 2, 3]\ngamma = [0.9, 0.99]\n"))
    with pytest.raises(UserError, match=f"index = {index}: job mine has 6 run.s., indices 0 to 5"):
        job.config(index, {})
