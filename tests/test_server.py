"""The server's loop against a scripted link: no MPI, no environments."""

import dataclasses
import tracemalloc

import numpy as np
import pytest

from mpi_rl.algorithms.a3c import A3C
from mpi_rl.algorithms.genkidama import GENKIDAMA
from mpi_rl.commands.inspect import verify_run
from mpi_rl.config import Config
from mpi_rl.errors import CannotWrite
from mpi_rl.learning.update_rules import clipping
from mpi_rl.records.runfile import read_run
from mpi_rl.server.base_rule import GradientRule, Outcome
from mpi_rl.server.growth import growth
from mpi_rl.server.loop import WorkerFailed, WorkersSilent, serve
from mpi_rl.server.progress import Progress
from mpi_rl.transport.messages import Command, Kind
from mpi_rl.transport.slots import Slot
from mpi_rl.transport.waiting import Backoff
from tests.records import header, recorder_of

CONFIG = Config(
    env="CartPole-v1",
    n_steps=10,
    total_steps=100,
    update_rule="sgd",
    learning_rate=1.0,
    max_grad_norm=2.0,
)


class ScriptedLink:
    """Workers that push a gradient of ones again and again, in turns given by ``order``."""

    def __init__(self, num_workers, order, num_params=2):
        self._order = iter(order)
        self.slots = [Slot(num_params, 8) for _ in range(num_workers)]
        for slot in self.slots:  # as where memory is shared: a reply is written over them
            slot.share(slot.halves)
            slot.grads[:] = 1
            self._say(slot, kind=Kind.JOIN, num_steps=0, rng_state=np.arange(1, 7))
        self.replies, self.hurried_after = [], None

    def _say(self, slot, **values):
        said = header(**values)
        for name in said.dtype.names:
            slot.header[name] = said[name]

    def backoff(self):
        return Backoff()

    def hurry(self):
        if self.hurried_after is None:
            self.hurried_after = len(self.replies)

    def poll(self):
        turn = next(self._order)
        return [] if turn is None else turn

    def reply(self, worker, version, step, command, rng_state=None):
        slot = self.slots[worker]
        self.replies.append((worker, slot.answer.copy(), version, command))
        slot.answer[:] = 1
        self._say(slot, version=version, num_steps=10, grad_norm=2**0.5)


class Hours:
    """A clock that runs ten seconds per look."""

    now = 0.0

    def __call__(self):
        self.now += 10
        return self.now


def run(tmp_path, link, stop_requested=lambda: ""):
    params, applied = np.zeros(2, np.float32), []
    policy = growth(CONFIG, len(link.slots))
    rule = A3C.rule(CONFIG, params, link.slots, range(len(link.slots)))
    push = rule.push

    def noted(pushed):
        scale = clipping(float(pushed.header["grad_norm"]), CONFIG.max_grad_norm)
        grads = scale * link.slots[pushed.worker].grads
        applied.append((pushed.worker, pushed.learning_rate, grads))
        return push(pushed)

    rule.push = noted
    record = recorder_of(tmp_path / "run.h5", rule, policy)
    with Progress("test") as progress:
        serve(link, rule, record, progress, policy, stop_requested)
    return params, applied, record


def test_each_push_is_applied_once_and_answered_with_the_newest_parameters(tmp_path):
    link = ScriptedLink(2, [[0, 1], None, [0], [1], [1], [0, 1], [0, 1], [0], [0], [1], [0]])
    params, applied, record = run(tmp_path, link)
    assert len(applied) == record.version == 11
    rates = [1 - step / 100 for step in range(0, 100, 10)] + [0.0]
    # Annealed by the steps seen before the push.
    assert [rate for _, rate, _ in applied] == pytest.approx(rates)
    assert params[0] == pytest.approx(-sum(rates))
    for worker, sent, version, _ in link.replies:
        assert sent[0] == pytest.approx(-sum(rates[:version]))


def test_members_of_a_group_start_with_its_parameters(tmp_path):
    link, config = ScriptedLink(4, [[0, 1, 2, 3]]), Config(algorithm="genkidama", num_workers=4)
    rule = GENKIDAMA.rule(config, np.full(2, 7, np.float32), link.slots, [0, 0, 1, 1])
    rule.statistics["group_params"][:] = [[1, 2], [3, 4]]  # as a resumed run has them
    policy = growth(config, 4)
    record = recorder_of(tmp_path / "run.h5", rule, policy)
    with Progress("test") as progress, pytest.raises(StopIteration):
        serve(link, rule, record, progress, policy, lambda: "")
    sent = [reply[1].tolist() for reply in link.replies]
    assert sent == [[1, 2], [1, 2], [3, 4], [3, 4]]


class Rounds(GradientRule):
    """The simplest synchronous rule: one update per round by the mean of all gradients."""

    def __init__(self, *run):
        super().__init__(*run)
        self._waiting, self._round = set(), set()

    def push(self, push):
        self._round = self._round or set(push.active)  # who joins later is in the next one
        self._waiting.add(push.worker)
        if not self._round <= self._waiting:
            return Outcome((), is_update=False)
        answered, self._waiting, self._round = sorted(self._waiting), set(), set()
        mean = np.mean([self.slots[worker].grads for worker in answered], axis=0)
        self.params -= push.learning_rate * mean
        for worker in answered:
            np.copyto(self.slots[worker].answer, self.params)
        return Outcome(answered)


def test_a_rule_may_answer_nobody_until_all_have_pushed(tmp_path):
    config = dataclasses.replace(CONFIG, num_workers=3, learning_rate_schedule="constant")
    order = [[0, 1], [1], None, [2], [0], [2], [1, 0], [2], [0, 1], [2], [1], [0], [2]]
    link, policy = ScriptedLink(3, order), growth(config, 3)
    rule = Rounds(config, np.zeros(2, np.float32), link.slots, range(3))
    record = recorder_of(tmp_path / "run.h5", rule, policy)
    with Progress("test") as progress:
        serve(link, rule, record, progress, policy, lambda: "")
    told = [(worker, params[0], version) for worker, params, version, _ in link.replies]
    assert told[:2] == [(0, 0, 0), (1, 0, 0)]  # two have joined; one of them waits for the other
    assert told[2:5] == [(2, 0, 0), (0, -1, 1), (1, -1, 1)]  # who has joined meanwhile is not in
    assert told[5:8] == [(0, -2, 2), (1, -2, 2), (2, -2, 2)]
    assert told[8:11] == [(0, -3, 3), (1, -3, 3), (2, -3, 3)]
    commands = [command for *_, command in link.replies]
    assert commands[-3:] == [Command.STOP] * 3 and Command.STOP not in commands[:-3]
    run = read_run(record.path)
    assert run.attributes["version"] == 4 and run.attributes["step"] == 110
    assert run.staleness.sum() == 4 and run.staleness.shape[1] == 1  # none was stale


def test_who_joins_in_a_runs_last_round_waits_for_nobody(tmp_path):
    config = dataclasses.replace(CONFIG, num_workers=3, total_steps=20)
    link, policy = ScriptedLink(3, [[0, 1], [0], [2], [1], [2]]), growth(config, 3)
    rule = Rounds(config, np.zeros(2, np.float32), link.slots, range(3))
    record = recorder_of(tmp_path / "run.h5", rule, policy)
    with Progress("test") as progress:
        serve(link, rule, record, progress, policy, lambda: "")
    stopped = [worker for worker, *_, command in link.replies if command == Command.STOP]
    assert stopped == [0, 1, 2]


class ForgetfulLink(ScriptedLink):
    """One that keeps no copies, and measures what is allocated between two of its replies."""

    count = peak = 0

    def reply(self, worker, version, step, command, rng_state=None):
        self.count += 1
        self._say(self.slots[worker], version=version, num_steps=10, grad_norm=1000.0)
        if self.count == 3:
            tracemalloc.start()
        elif self.count == 9:
            self.peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()


@pytest.mark.parametrize("update_rule", ["rmsprop", "adam", "sgd"])
def test_serving_allocates_nothing_of_the_parameters_size(tmp_path, update_rule):
    link, params = ForgetfulLink(1, [[0]] * 20, 10**6), np.zeros(10**6, np.float32)
    config = dataclasses.replace(CONFIG, update_rule=update_rule, momentum=0.9)
    rule, policy = A3C.rule(config, params, link.slots, [0]), growth(config, 1)
    record = recorder_of(tmp_path / "run.h5", rule, policy)
    with Progress("test") as progress:
        serve(link, rule, record, progress, policy, lambda: "")
    assert 0 < link.peak < params.nbytes / 10
    # The reply, without a copy of its own
    np.testing.assert_array_equal(link.slots[0].answer, params)


def test_a_run_shorter_than_a_look_still_tells_its_speed(tmp_path, capsys):
    run(tmp_path, ScriptedLink(1, [[0]] * 12))
    *_, last = capsys.readouterr().out.splitlines()
    assert "100.0 %" in last and " 0 steps/s" not in last and "?" not in last


def test_workers_are_told_to_stop_at_the_budget_and_only_then(tmp_path):
    link = ScriptedLink(2, [[0, 1]] + [[0]] * 10 + [[1]])
    _, _, record = run(tmp_path, link)
    commands = [(worker, command) for worker, _, _, command in link.replies]
    assert commands[-2:] == [(0, Command.STOP), (1, Command.STOP)]
    assert all(command == Command.CONTINUE for _, command in commands[:-2])
    run_file = read_run(record.path)
    assert run_file.attributes["status"] == "complete"
    assert run_file.attributes["step"] == 110  # the budget and one rollout that was under way
    # Worker 1 pushed ten updates after its pull.
    assert run_file.staleness[1].tolist() == [0] * 10 + [1]


def test_a_requested_stop_drains_every_worker_and_saves(tmp_path):
    link = ScriptedLink(2, [[0, 1], [0], [1], [0], [1]])
    _, applied, record = run(tmp_path, link, lambda: record_count(link) >= 4)
    assert [worker for worker, _, _, command in link.replies if command == Command.STOP] == [0, 1]
    assert len(applied) == 4 and read_run(record.path).attributes["status"] == "checkpointed"


def record_count(link):
    return len(link.replies)


class GrowingLink(ScriptedLink):
    """Workers that are ready before they join, and again once they were parked."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        for slot in self.slots:
            self._say(slot, kind=Kind.READY)

    def reply(self, worker, version, step, command, rng_state=None):
        slot = self.slots[worker]
        kind = slot.header["kind"]
        super().reply(worker, version, step, command, rng_state)
        if kind == Kind.READY:
            self._say(slot, kind=Kind.JOIN, rng_state=np.arange(1, 7) + worker)
        if command == Command.PARK:
            self._say(slot, kind=Kind.READY)


def run_growing(tmp_path, order, workers, stop_requested=lambda: "", **settings):
    config = dataclasses.replace(CONFIG, num_workers=workers, **settings)
    link, policy = GrowingLink(workers, order), growth(config, workers)
    rule = A3C.rule(config, np.zeros(2, np.float32), link.slots, range(workers))
    record = recorder_of(tmp_path / "run.h5", rule, policy)
    with Progress("test") as progress:
        serve(link, rule, record, progress, policy, stop_requested)
    return link, read_run(record.path)


GROWING = dict(growth="schedule", initial_workers=1, growth_steps=(30, 60), growth_workers=(3, 2))


def test_parked_workers_are_answered_when_they_are_wanted_and_leave_when_they_are_not(tmp_path):
    order = [[0, 1, 2]] + [[0]] * 3  # ready; worker 0 joins and pushes twice
    order += [[], [0], [1, 2], [1, 2]]  # at 30 steps 1 and 2 are admitted; they join and push
    order += [[0], [2], [1], [2], [0], [0], [1]]  # at 60 steps 2 is parked, to the end
    link, run = run_growing(tmp_path, order, 3, **GROWING)
    told = [(worker, command.name) for worker, _, _, command in link.replies]
    assert told[:7] == [(0, "CONTINUE")] * 5 + [(1, "CONTINUE"), (2, "CONTINUE")]
    assert told[12] == (2, "PARK") and told[-3:] == [(0, "STOP"), (2, "STOP"), (1, "STOP")]
    events = run.tables["events"]
    moves = [event for event in zip(events["kind"], events["worker_id"]) if event[1] >= 0]
    joins = [("admit", 1), ("admit", 2), ("join", 1), ("join", 2)]
    assert moves == [("admit", 0), ("join", 0), *joins, ("leave", 2)]
    assert run.tables["workers"]["num_steps"].sum() == run.attributes["step"] == 110


def test_who_arrives_after_the_end_has_not_joined(tmp_path):
    asked = iter([""] * 4 + ["SIGTERM"] * 100)
    order = [[0, 1], [0], [0], [], [1], [0]]  # worker 1 was admitted, and has imported until then
    config = dict(growth="schedule", initial_workers=2, growth_steps=(90,), growth_workers=(1,))
    link, run = run_growing(tmp_path, order, 2, lambda: next(asked), **config)
    events = run.tables["events"]
    assert events["worker_id"][events["kind"] == "join"].tolist() == [0]
    assert (np.diff(events["wall_time_s"]) >= 0).all()  # the clock starts once


def test_a_stop_ends_parked_workers_too(tmp_path):
    asked = iter([""] * 3 + ["SIGTERM"] * 100)
    order = [[0, 1], [0], [0], [], [0], [2]]  # rank 3 is ready only after the stop
    link, run = run_growing(tmp_path, order, 3, lambda: next(asked), **GROWING)
    stopped = [worker for worker, _, _, command in link.replies if command == Command.STOP]
    assert stopped == [1, 0, 2] and run.attributes["status"] == "checkpointed"


def test_gradients_that_are_too_old_are_dropped_and_counted(tmp_path):
    order = [[0, 1, 2], [0, 1, 2], [0], [0], [0], [1], [1], [2], [1], [0], [1], [2], [0], [1]]
    settings = dict(max_staleness=2, learning_rate=1.0, learning_rate_schedule="constant")
    settings["interval_period_steps"] = 10
    link, run = run_growing(tmp_path, order, 3, **settings)
    workers = run.tables["workers"]
    # Worker 1's first gradient was 3 updates old, worker 2's 4 and 3.
    assert workers["num_dropped"].tolist() == [0, 1, 2]
    assert run.staleness.tolist() == [[3, 1, 1], [2, 2, 0], [0, 0, 0]]
    assert run.attributes["version"] == workers["num_pushes"].sum() == 9
    assert run.attributes["step"] == 120  # also what was dropped was played
    assert verify_run(tmp_path / "run.h5") == []  # with intervals that brought no update
    dropped = [reply for reply in link.replies if reply[0] == 1][2]
    assert dropped[1].tolist() == [-3, -3]  # the newest parameters all the same


def test_the_step_size_is_divided_by_the_staleness(tmp_path):
    order = [[0, 1, 2], [0, 1, 2], [0], [0], [1], [2], [0], [1], [2]]
    settings = dict(staleness_scaled_rate=True, learning_rate_schedule="constant", total_steps=50)
    link, run = run_growing(tmp_path, order, 3, **settings)
    # The gradients, of ones, were 0, 0, 2, 3, 2, 2 and 2 updates old.
    assert run.staleness.tolist() == [[2, 0, 1, 0], [0, 0, 2, 0], [0, 0, 1, 1]]
    steps = [1, 1, 1 / 2, 1 / 3, 1 / 2, 1 / 2, 1 / 2]
    params = [reply[1][0] for reply in link.replies[-7:]]
    np.testing.assert_allclose(params, -np.cumsum(steps), rtol=1e-6)


def test_gradients_are_clipped_to_the_norm(tmp_path):
    link = ScriptedLink(1, [[0]] * 12)
    reply = link.reply

    def reply_with_long_gradients(worker, *arguments):
        reply(worker, *arguments)
        link.slots[worker].grads[:] = 30, 40
        link.slots[worker].header["grad_norm"] = 50

    link.reply = reply_with_long_gradients
    run(tmp_path, link)
    _, first, second = (params for _, params, *_ in link.replies[:3])
    np.testing.assert_allclose(first, [-1.2, -1.6], rtol=1e-6)  # a norm of 2, and a rate of 1
    np.testing.assert_allclose(second - first, [-1.08, -1.44], rtol=1e-6)  # and of 0.9


def test_a_failed_worker_ends_the_run(tmp_path):
    link = ScriptedLink(2, [[0, 1], [0], [1]])
    reply = link.reply

    def reply_then_fail(worker, *arguments):
        reply(worker, *arguments)
        if worker == 1:
            link.slots[1].header["kind"] = Kind.FAILED

    link.reply = reply_then_fail
    with pytest.raises(WorkerFailed, match=r"worker 1 \(rank 2\) failed"):
        run(tmp_path, link)


def test_workers_that_do_not_answer_a_stop_are_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr("mpi_rl.server.loop.perf_counter", Hours())
    link = ScriptedLink(3, [[0, 1, 2], [0]] + [[]] * 100)
    with pytest.raises(WorkersSilent, match=r"no answer from rank\(s\) 2, 3 in 20 s"):
        run(tmp_path, link, lambda: "SIGUSR1" if len(link.replies) >= 3 else "")
    assert [command for *_, command in link.replies][-1] == Command.STOP
    assert link.hurried_after == 3
    (tmp_path / "run.h5").unlink()
    with pytest.raises(WorkersSilent, match=r"rank\(s\) 1, 2"):  # none has come yet
        run(tmp_path, ScriptedLink(2, [[]] * 100), lambda: "SIGUSR1")


def test_a_record_that_cannot_be_written_stops_every_worker_first(tmp_path, monkeypatch):
    def full(path, run):
        raise CannotWrite("no space")

    monkeypatch.setattr("mpi_rl.server.recorder.write_run", full)
    link = ScriptedLink(2, [[0], [1]])
    with pytest.raises(CannotWrite, match="no space"):
        run(tmp_path, link)
    assert [command for *_, command in link.replies] == [Command.STOP] * 2


def test_who_waits_for_silent_workers_gives_up_also_when_nothing_can_be_written(
    tmp_path, monkeypatch
):
    """They are still at work: to go on as if they had been told to stop would wait for ever."""

    def full(path, run):
        raise CannotWrite("no space")

    monkeypatch.setattr("mpi_rl.server.recorder.write_run", full)
    monkeypatch.setattr("mpi_rl.server.loop.perf_counter", Hours())
    with pytest.raises(WorkersSilent, match=r"rank\(s\) 2, 3 in 20 s") as raised:
        run(tmp_path, ScriptedLink(3, [[0]] + [[]] * 100))
    assert "no space" in str(raised.value.__cause__)
