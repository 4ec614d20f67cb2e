import dataclasses
import json

import pytest

from mpi_rl.algorithms.choice import ALGORITHMS, check
from mpi_rl.config import Config, config_from_json, differences
from mpi_rl.errors import UserError


@pytest.mark.parametrize(
    "name, value, right",
    [
        ("growth", "schedule", "'none', groups are made at the start"),
        ("envs_per_worker", 2, "1, a group meets at the end"),
        ("learning_rate_schedule", "linear", "'constant', groups do not anneal"),
    ],
)
def test_what_does_not_fit_the_algorithm_is_refused(name, value, right):
    settings = {"learning_rate_schedule": "constant", name: value}
    if name == "growth":
        settings |= dict(initial_workers=1, growth_steps=(9,), growth_workers=(2,))
    words = f"{name} = {value!r} with algorithm = 'genkidama': must be {right}"
    with pytest.raises(UserError, match=words):
        check(Config(algorithm="genkidama", **settings))
    assert name in {unfit for unfit, *_ in ALGORITHMS["genkidama"].unfit}
    assert check(Config(**settings)) == Config(**settings)


@pytest.mark.parametrize("name, value", [("max_staleness", 3), ("staleness_scaled_rate", True)])
def test_what_is_of_one_algorithm_is_refused_with_another(name, value):
    with pytest.raises(UserError, match=f"{name} = {value}.*or algorithm = 'a3c'"):
        Config(algorithm="genkidama", **{name: value})


def test_a_config_that_is_no_json_is_a_users_error():
    with pytest.raises(UserError, match="no JSON"):
        config_from_json("{gamma")


def test_settings_survive_json():
    config = Config(hidden_sizes=(3, 4), gamma=0.5, clip_rewards=True)
    assert config_from_json(json.dumps(dataclasses.asdict(config))) == config


def test_differences_name_fields_that_touch_learning():
    changed = Config(gamma=0.5, checkpoint_period_s=1.0, server_threads=4)
    assert differences(Config(), changed) == ["gamma: 0.995 -> 0.5"]


def test_every_setting_has_help():
    assert all(item.metadata["help"] for item in dataclasses.fields(Config))
