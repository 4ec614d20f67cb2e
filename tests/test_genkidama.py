"""Groups that average with the server: hand numbers, whole runs, failures."""

import ast
import json
import os
import signal
import time
from types import SimpleNamespace

import numpy as np
import pytest

from mpi_rl.algorithms import genkidama
from mpi_rl.algorithms.genkidama import GENKIDAMA
from mpi_rl.algorithms.group import groups_of
from mpi_rl.algorithms.worker import Worker
from mpi_rl.commands.inspect import summary, verify_run
from mpi_rl.config import Config
from mpi_rl.errors import UserError
from mpi_rl.learning.losses import Losses
from mpi_rl.learning.update_rules import mix
from mpi_rl.records.runfile import read_run
from mpi_rl.server.base_rule import Push
from mpi_rl.server.growth import growth
from mpi_rl.server.loop import _Roster
from mpi_rl.server.recorder import RESUMED
from mpi_rl.transport.messages import Command, Kind
from mpi_rl.transport.slots import Slot
from tests.ranks import ROOT, finish, mpirun, rank, start, wait_for

THESIS = ROOT / "jobs" / "lunar_lander_thesis_genkidama.toml"
SMALL = ("train", THESIS, "--hidden-sizes", 8, "--output", "run.h5")


LONG = (*SMALL, "--total-episodes", 10**6, "--checkpoint-period-s", 0.2)
BFLOAT16 = {"exchange_dtype": "bfloat16"}
PAIRS = ("--num-workers", 4, "--group-size", 2)


def version_of(path):
    return read_run(path).attributes["version"]


def started(folder, num_ranks, *arguments, version):
    """Start a run, and wait until its file knows a later ``version``."""
    process = start(num_ranks, *LONG, *arguments, cwd=folder)
    wait_for(folder / "run.h5", process)
    deadline = time.monotonic() + 60
    while version_of(folder / "run.h5") <= version:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    return process


def stopped(process):
    """Let a run save itself."""
    os.kill(rank(process, 0), signal.SIGINT)
    result = finish(process)
    assert result.returncode == 0 and result.stderr == "", result.stderr


def vector(*values):
    return np.array(values, np.float32)


def exchanged(groups, worker, is_near, **settings):
    """Let a server of 8 and -8 take in 4 and -4; return its rule, and what it answers."""
    config, slots = Config(algorithm="genkidama", **settings), [Slot(2, 1) for _ in groups]
    slot = slots[worker]
    if is_near:
        slot.share(slot.halves)
    rule = GENKIDAMA.rule(config, vector(8, -8), slots, groups)
    slot.grads[:] = 4, -4
    outcome = rule.push(Push(worker, slot.header, 3, 0.1, {worker}))  # neither age nor rate matter
    assert outcome.answered == [worker] and outcome.is_update and not outcome.is_dropped
    slot.turn()
    return rule, slot.params


@pytest.mark.parametrize(
    "alpha, beta, server, group",
    [
        (0, 0, 8, 4),  # nothing moves
        (1, 0, 4, 4),  # the server takes the group's
        (0, 1, 8, 8),  # the group takes the server's
        (1, 1, 4, 4),
        (0.25, 0, 7, 4),  # .75 8 + .25 4
        (0.25, 0.5, 7, 5.5),  # the group sees the server's new ones
        (0.5, 0.75, 6, 5.5),
    ],
)
@pytest.mark.parametrize("is_near", [False, True])
def test_one_exchange_equals_hand_numbers(alpha, beta, server, group, is_near):
    rule, answer = exchanged([0, 0, 1, 1], 3, is_near, alpha=alpha, beta=beta)
    assert rule.params.tolist() == answer.tolist() == [server, -server]
    assert rule.start(2).tolist() == [group, -group] and rule.start(0).tolist() == [8, -8]


@pytest.mark.parametrize("is_near", [False, True])
def test_elastic_averaging_is_symmetric(is_near):
    rule, answer = exchanged([0, 1], 1, is_near, alpha=0.25, beta=0.25, elastic=True)
    assert answer.tolist() == [8, -8]  # what the server had before
    assert rule.params.tolist() == [7, -7]
    assert rule.start(1).tolist() == [5, -5]  # both moved by 1


def test_mixing_is_exact_at_its_ends():
    rng = np.random.default_rng(0)
    ours, theirs = (rng.normal(size=1000).astype(np.float32) for _ in range(2))
    for share, wanted in ((0, ours), (1, theirs)):
        mixed = ours.copy()
        mix(mixed, theirs, share, np.zeros_like(ours))
        np.testing.assert_array_equal(mixed, wanted)


EXCHANGES = [
    # Group 0 adds 1 in an episode, group 1 adds 2; written as server, group.
    (0, 0, "0,1,0", [0, 2, 2], {}),
    (1, 0, "0,1,0", [2, 2, 2], {}),  # the server has what came last
    (0, 1, "0,1,0", [0, 0, 0], {}),  # groups get the server's zeros each time
    (1, 1, "0,1,0", [2, 2, 2], {}),  # 1, then 2, then 1 + 1
    (0.5, 0, "0,0,1", [1.625, 2, 2], {}),  # .5, then .25 + 1 = 1.25, then .625 + 1
    # .5 | .75; of 1.75: .25 + .875 = 1.125 | .875 + .5625; of 2: .5625 + 1 = 1.5625 | 1.78125
    (0.5, 0.5, "0,0,1", [1.5625, 1.4375, 1.78125], {}),
    # As above from the server's old ones: .5 | .5; of 1.5: 1 | 1; of 2: 1.5 | 1.5
    (0.5, 0.5, "0,0,1", [1.5, 1, 1.5], {"elastic": True}),
    # 2 episodes of 1 are 2: 1 | 1.5; of 3.5: 2.25 | 2.875; of 4: 3.125 | 3.5625
    (0.5, 0.5, "0,0,1", [3.125, 2.875, 3.5625], {"exchange_period": 2}),
    # Gradients of norm 1 are cut to a half: .5, then 1, then .5 + .5
    (1, 1, "0,1,0", [1, 1, 1], {"max_grad_norm": 0.5}),
    # The same numbers, all of which have 7 bits or less ...
    (0.5, 0.5, "0,0,1", [1.5625, 1.4375, 1.78125], {"exchange_dtype": "float16"}),
    (0.5, 0.5, "0,0,1", [1.5625, 1.4375, 1.78125], BFLOAT16),
    # ... and more: 1 + 2^-9 goes up as 1, and 2^-8 - 2^-18 comes down as 2^-8.
    (2**-9, 1, "0,0,1", [2**-7 - 3 * 2**-18 + 2**-27, 2**-8, 2**-7], BFLOAT16),
]


@pytest.mark.mpi
@pytest.mark.parametrize("transport", ["window", "message"])
def test_exchanges_equal_hand_numbers(tmp_path, transport):
    words = []
    for alpha, beta, order, _, more in EXCHANGES:
        words += [order, json.dumps({"alpha": alpha, "beta": beta, **more})]
    program = (ROOT / "tests" / "mixing.py",)
    result = mpirun(3, transport, *words, cwd=tmp_path, program=program)
    assert result.returncode == 0 and result.stderr == "", result.stderr
    found = [ast.literal_eval(line) for line in result.stdout.splitlines()]
    assert found == [expected for _, _, _, expected, _ in EXCHANGES]


def test_groups_are_neighbours_on_one_node():
    assert groups_of(["a"] * 8, 4) == (0, 0, 0, 0, 1, 1, 1, 1)
    assert groups_of(["a", "b", "a", "b"], 2) == (0, 1, 0, 1)
    assert groups_of(["b", "a", "a"], 1) == (0, 1, 2)
    with pytest.raises(
        UserError, match=r"node a has 3 worker\(s\), no multiple .* cannot straddle"
    ):
        groups_of(["a", "a", "a", "b", "b"], 2)


def test_members_of_a_group_are_told_the_same():
    tell = _Roster([0, 0, 1], growth(Config(), 3)).tell
    told = [tell(worker, over) for worker, over in ((0, False), (1, True), (1, True), (0, False))]
    assert told == [Command.CONTINUE] * 2 + [Command.STOP] * 2
    assert tell(2, True) == Command.STOP


class Link:
    """A server that says stop after so many exchanges, and notes what they report."""

    version = 0

    def __init__(self, num_exchanges):
        slot = Slot(3, 2)
        self.reply, self.header, self.params, self.grads = slot.reply, slot.header, *slot.halves
        self.pushed, self._left = [], num_exchanges

    def push(self):
        self.pushed.append((self.header["num_episodes"], self.header["num_updates"]))

    def pull(self):
        self.reply["command"] = Command.STOP if len(self.pushed) > self._left else Command.CONTINUE
        return self.reply

    def is_hurried(self):
        return False


class Group:
    """A group of one, whose parameters are the number of updates."""

    is_leader, kind = True, Kind.PUSH

    def __init__(self):
        self.params, self.own, self.scratch = np.zeros((3, 3), np.float32)
        self.pairs = [(self.own, None)]

    def begin(self, params):
        np.copyto(self.params, params)

    def meet(self):
        pass

    close = meet

    def update(self, grad_norm):
        self.params += 1
        return False

    def pull(self):
        np.copyto(self.own, self.params)
        return False


class Agent:
    """One whose every fifth rollout ends an episode; it notes the parameters that it plays with."""

    def __init__(self, params):
        self._params, self.played = params, []

    def reset(self):
        pass

    close = reset

    def collect(self):
        self.played.append(int(self._params[0]))
        returns = [1.0] if len(self.played) % 5 == 0 else []
        return SimpleNamespace(
            actions=np.zeros((1, 1)),
            env_s=0,
            act_s=0,
            episode_returns=returns,
            episode_lengths=returns,
        )

    def learn(self, rollout):
        return Losses(0, 0, 0), 1.0


class Member(Worker):
    """The only member of a made-up group."""

    def __init__(self, link, config):
        super().__init__(SimpleNamespace(rank=1), link, config, None, None, [0])

    def meet_group(self):
        return Group()

    def make_agent(self, pairs):
        self.agent = Agent(pairs[0][0])
        return self.agent


@pytest.mark.parametrize(
    "pull_period, pulled_after",
    [(1, range(20)), (3, [0, 3, 5, 8, 10, 13, 15, 18]), (100, [0, 5, 10, 15])],
)
def test_members_pull_every_so_often_and_where_an_episode_ends(pull_period, pulled_after):
    settings = dict(algorithm="genkidama", learning_rate_schedule="constant", exchange_period=2)
    link = Link(num_exchanges=2)
    member = Member(link, Config(**settings, pull_period=pull_period))
    genkidama.work(member)
    assert member.agent.played == [max(at for at in pulled_after if at <= n) for n in range(20)]
    assert link.pushed == [(0, 0), (2, 10), (2, 10)]  # each exchange after 2 episodes of 5 updates


@pytest.mark.mpi
@pytest.mark.parametrize("transport", ["window", "message"])
def test_two_groups_of_four_run_as_in_the_thesis(tmp_path, transport):
    budget = ("--total-episodes", 80, "--snapshot-period-updates", 4)
    result = mpirun(9, *SMALL, *budget, "--transport", transport, cwd=tmp_path)
    assert result.returncode == 0 and result.stderr == "", result.stderr
    assert verify_run(tmp_path / "run.h5") == []
    run = read_run(tmp_path / "run.h5")
    workers, version = run.tables["workers"], run.attributes["version"]
    assert workers["group_id"].tolist() == [0] * 4 + [1] * 4
    exchanges = workers["num_pushes"]
    assert exchanges[[0, 4]].sum() == version and (exchanges[[1, 2, 3, 5, 6, 7]] == 0).all()
    # Each exchange ends an episode of every member; members hear together when it is over.
    np.testing.assert_array_equal(workers["num_episodes"], np.repeat(exchanges[[0, 4]], 4))
    assert 80 <= len(run.episodes["step"]) < 80 + 2 * 2 * 4
    snapshots = run.tables["snapshots"]
    periodic = snapshots["version"][snapshots["kind"] == "periodic"]
    assert periodic.tolist() == list(range(4, version + 1, 4))
    assert snapshots["kind"][-3:].tolist() == ["group 0", "group 1", "last"]
    text = summary(tmp_path / "run.h5")
    assert "server <- 0.9 server + 0.1 group, then group <- 1 group + 0 server" in text
    assert f"workers 4, 5, 6, 7: {exchanges[4]:,} exchanges" in text


@pytest.mark.mpi
@pytest.mark.parametrize("transport", ["window", "message"])
def test_with_one_group_alpha_1_and_beta_0_the_server_equals_the_group_bit_for_bit(
    tmp_path, transport
):
    program, settings = (ROOT / "tests" / "mixing.py",), '{"alpha": 1, "beta": 0, "group_size": 2}'
    result = mpirun(3, transport, "0,0,0", settings, cwd=tmp_path, program=program)
    assert result.stdout == "True True True\n", result.stderr
    result = mpirun(5, transport, "0,1,0", settings, cwd=tmp_path, program=program)
    assert result.stdout == "True True True False False\n", result.stderr  # group 0 came last


@pytest.mark.mpi
def test_an_exception_in_a_member_ends_those_who_wait_for_it(tmp_path):
    budget, program = ("--total-episodes", 1000), (ROOT / "tests" / "faults.py",)
    fault = ("environment", *SMALL, *PAIRS, *budget)
    result = mpirun(5, *fault, cwd=tmp_path, program=program, timeout_s=60)
    assert result.returncode != 0 and "rank 2: RuntimeError: the lander's engine" in result.stderr
    assert read_run(tmp_path / "run.h5").attributes["status"] == "failed"


@pytest.mark.mpi
def test_an_interrupted_run_goes_on(tmp_path):
    path = tmp_path / "run.h5"
    stopped(started(tmp_path, 5, *PAIRS, version=5))
    first = read_run(path, with_state=True)
    assert first.attributes["status"] == "checkpointed" and verify_run(path) == []
    of_groups = first.state["update_rule/group_params"]
    assert not np.array_equal(*of_groups)  # with beta 0 they never meet
    kinds, returns = first.tables["snapshots"]["kind"], first.episodes["episode_return"]
    for group in (0, 1):
        (row,) = np.flatnonzero(kinds == f"group {group}")
        np.testing.assert_array_equal(first.snapshot_params[row], of_groups[group])
        recent = returns[np.isin(first.episodes["worker_id"], [2 * group, 2 * group + 1])][-100:]
        assert first.tables["snapshots"]["mean_return"][row] == pytest.approx(recent.mean())
    stopped(started(tmp_path, 5, *PAIRS, version=first.attributes["version"]))
    again = read_run(path, with_state=True)
    assert again.attributes["restart_count"] == 1 and verify_run(path) == []
    assert RESUMED in again.tables["events"]["kind"]


@pytest.mark.mpi
@pytest.mark.parametrize("transport", ["window", "message"])
def test_a_stop_is_heard_in_mid_episode(tmp_path, transport):
    path, often = tmp_path / "run.h5", ("--exchange-period", 1000, "--n-steps", 5)
    run = started(tmp_path, 5, *PAIRS, *often, "--transport", transport, version=-1)
    time.sleep(2)
    began = time.monotonic()
    stopped(run)
    assert time.monotonic() - began < 10
    assert verify_run(path) == []
    done = read_run(path)
    assert done.attributes["status"] == "checkpointed" and done.attributes["version"] == 2
    assert (done.tables["workers"]["num_steps"] > 0).all()
    assert done.attributes["step"] > done.episodes["episode_length"].sum()  # some were cut


@pytest.mark.mpi
@pytest.mark.parametrize("number", [2, 3])
def test_a_member_that_dies_in_mid_episode_keeps_nobody_waiting(tmp_path, number):
    path = tmp_path / "run.h5"
    run = started(tmp_path, 5, *PAIRS, version=5)
    os.kill(rank(run, number), signal.SIGKILL)
    began = time.monotonic()
    assert finish(run, timeout_s=30).returncode != 0
    assert time.monotonic() - began < 20
    assert verify_run(path) == [] and read_run(path).attributes["version"] > 5


@pytest.mark.mpi
def test_a_slowed_group_exchanges_less_often(tmp_path):
    slow = (*PAIRS, "--group-slowdown", 8, "--total-episodes", 200)
    assert mpirun(5, *SMALL, *slow, cwd=tmp_path).returncode == 0
    pushes = read_run(tmp_path / "run.h5").tables["workers"]["num_pushes"]
    assert 0 < 2 * pushes[2] < pushes[0]


@pytest.mark.mpi
@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ("--group-size", 3),
            "num_workers = 8 with group_size = 3: must be a multiple of it, like 9",
        ),
        (("--envs-per-worker", 4), "envs_per_worker = 4 with algorithm = 'genkidama': must be 1"),
        (("--algorithm", "a3c"), "group_size = 4 with algorithm = 'a3c'"),
        (("--total-episodes", 0), "total_steps = 0 and total_episodes = 0"),
    ],
)
def test_what_groups_cannot_do_is_refused_in_one_line(tmp_path, arguments, message):
    result = mpirun(9, *SMALL, *arguments, cwd=tmp_path)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith("mpi_rl: ") and message in result.stderr
    assert result.stderr.count("\n") == 1 and not list(tmp_path.iterdir())
