"""Factors of gradients: layouts of pushes, and updates from factors beside those from products."""

import dataclasses

import numpy as np
import pytest

from mpi_rl.compiled import kernels
from mpi_rl.config import Config
from mpi_rl.errors import UserError
from mpi_rl.learning.update_rules import make_update_rule
from mpi_rl.networks.factors import Factors, Layout, layout_of
from mpi_rl.networks.layers import Layer, initial_params, layers
from mpi_rl.networks.make import make_network
from mpi_rl.networks.network import NetworkSpec
from mpi_rl.server.base_rule import GradientRule
from mpi_rl.transport.slots import Slot

RULES = [("rmsprop", 0.0), ("adam", 0.0), ("sgd", 0.0), ("sgd", 0.9)]
# Weights whose rows are whole tiles, more, and less; between layers that are pushed as they are.
STACK = [
    Layer("trunk", 1, 2, side=3, stride=1),
    Layer("trunk", 192, 5),
    Layer("trunk", 100, 7),
    Layer("policy", 3, 2),
]


def initial_of(stack):
    rng = np.random.default_rng(5)
    return rng.normal(size=Layout(stack).num_params).astype(np.float32)


def atari(network="atari_2013"):
    return NetworkSpec(network, (), "relu", False, "uniform", (4, 84, 84), 6)


def mlp(*hidden_sizes):
    return NetworkSpec("mlp", hidden_sizes, "relu", True, "uniform", (8,), 4)


def settings(**changes):
    return dataclasses.replace(Config(n_steps=5), **changes)


def test_a_gradient_is_the_product_of_its_factors():
    layout = Layout([Layer("trunk", 3, 4)], num_rows=1, always=True)
    push = np.array([1, 2, 3, 10, 0, -1, 2, 5, 6, 7, 8], np.float32)  # x, delta, bias's gradient
    expected = [10, 20, 30, 0, 0, 0, -1, -2, -3, 2, 4, 6, 5, 6, 7, 8]  # weight (out, in), bias
    gradient = layout.gradient(push, np.zeros(16, np.float32))
    assert gradient.tolist() == [10, 0, -1, 2, 20, 0, -2, 4, 30, 0, -3, 6, 5, 6, 7, 8]
    assert layout.to_file(gradient).tolist() == expected
    assert layout.norm(push) == pytest.approx(np.linalg.norm(expected))


def test_norm_is_that_of_the_gradient_in_double_precision():
    rng = np.random.default_rng(0)
    for rows in (1, 2, 5):
        layout = Layout(STACK, rows, always=True)
        push = rng.normal(size=layout.size).astype(np.float32)
        whole = layout.gradient(push, np.zeros(layout.num_params, np.float32)).astype(float)
        assert layout.has_factors and layout.norm(push) == pytest.approx(np.linalg.norm(whole))
    push[0] = np.nan
    assert np.isnan(layout.norm(push))


def test_without_rows_a_push_is_the_gradient():
    layout = Layout(STACK)
    assert layout.size == layout.num_params and not layout.has_factors and len(layout.parts) == 1
    push = np.random.default_rng(0).normal(size=layout.size).astype(np.float32)
    np.testing.assert_array_equal(layout.gradient(push, np.zeros_like(push)), push)
    assert layout.norm(push) == pytest.approx(np.linalg.norm(push.astype(float)))


def test_run_files_have_every_weight_by_outputs():
    layout, plain = Layout(STACK, 2, always=True), Layout(STACK)
    params = np.arange(layout.num_params, dtype=np.float32)
    for ours, theirs in zip(layout.weights(layout.from_file(params)), plain.weights(params)):
        np.testing.assert_array_equal(ours[0], theirs[0])
        np.testing.assert_array_equal(ours[1], theirs[1])
    many = np.stack([params, -params])
    assert not np.array_equal(layout.from_file(many), many)
    np.testing.assert_array_equal(layout.to_file(layout.from_file(many)), many)
    assert plain.to_file(many) is many


def test_parts_cover_every_parameter_and_every_number_of_a_push_once():
    layout = Layout(STACK, 2, always=True)
    ends = [0] + [part.end for part in layout.parts]
    assert [part.begin for part in layout.parts] == ends[:-1] and ends[-1] == layout.num_params
    push = np.arange(layout.size, dtype=np.float32)
    taken = []
    for weight, bias in layout.views(push):
        taken += [*weight] if isinstance(weight, Factors) else [weight]
        taken.append(bias)
    np.testing.assert_array_equal(np.concatenate([array.ravel() for array in taken]), push)


def reference(rule, momentum, params, whole, statistics):
    """Change params and statistics, in double precision, by the formulas of the papers."""
    d, rate = 0.5 * whole, 0.01
    if rule == "rmsprop":
        statistics["g"] = 0.99 * statistics["g"] + 0.01 * d * d
        return params - rate * d / np.sqrt(statistics["g"] + 0.1)
    if rule == "adam":
        statistics["t"] += 1
        statistics["m"] = 0.9 * statistics["m"] + 0.1 * d
        statistics["g"] = 0.999 * statistics["g"] + 0.001 * d * d
        m, v = (statistics[k] / (1 - b ** statistics["t"]) for k, b in (("m", 0.9), ("g", 0.999)))
        return params - rate * m / (np.sqrt(v) + 0.1)
    statistics["m"] = momentum * statistics["m"] + d + 0.1 * params
    return params - rate * statistics["m"]


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("rows", [1, 3, 6])
@pytest.mark.parametrize("rule, momentum", RULES)
def test_an_update_from_factors_equals_that_from_the_product(
    rule, momentum, rows, compiled, monkeypatch
):
    monkeypatch.setattr(kernels, "AVAILABLE", compiled)
    layout, rng = Layout(STACK, rows, always=True), np.random.default_rng(rows)
    start = rng.normal(size=layout.num_params).astype(np.float32)
    by_factors, by_product, expected = start.copy(), start.copy(), start.astype(float)
    push, reply = np.zeros(layout.size, np.float32), np.zeros_like(start)
    whole, statistics = np.zeros_like(start), dict(g=0.0, m=0.0, t=0)
    config = settings(update_rule=rule, momentum=momentum, weight_decay=0.1, epsilon=0.1)
    rules = [
        make_update_rule(config, by_factors, 2, layout).bind(push, reply, 1),
        make_update_rule(config, by_product, 2).bind(whole, np.zeros_like(start), 1),
    ]
    for _ in range(4):
        push[:] = rng.normal(size=push.size)
        layout.gradient(push, whole)
        expected = reference(rule, momentum, expected, whole.astype(float), statistics)
        for update in rules:
            update(0.01, 0.5)
        np.testing.assert_allclose(by_factors, by_product, rtol=2e-5, atol=1e-6)
        np.testing.assert_allclose(by_factors, expected, rtol=2e-5, atol=1e-5)
        np.testing.assert_array_equal(reply, by_factors)


class Pushes:
    """Pushes of two workers, most of whose inputs are 0, to a rule without weight decay."""

    def __init__(self, rule, momentum=0.0, layout=None, start=None):
        self.layout = layout or Layout(STACK, 3, always=True)
        self.params = np.ones(self.layout.num_params, np.float32) if start is None else start.copy()
        config = settings(update_rule=rule, momentum=momentum, weight_decay=0.0, epsilon=0.1)
        self.rule = make_update_rule(config, self.params, 2, self.layout)
        self.pushes = [np.zeros(self.layout.size, np.float32) for _ in range(2)]
        self.replies = [np.zeros_like(self.params) for _ in range(2)]
        bound = enumerate(zip(self.pushes, self.replies))
        self.updates = [self.rule.bind(*pair, worker) for worker, pair in bound]

    def push(self, number, worker):
        """Push, and look at the reply."""
        rng = np.random.default_rng(number)
        self.pushes[worker][:] = rng.normal(size=self.layout.size)
        for weight, _ in self.layout.views(self.pushes[worker]):
            if isinstance(weight, Factors):
                weight.x[:, rng.random(weight.x.shape[1]) < 0.7] = 0
                weight.x[rng.random(weight.x.shape) < 0.3] = 0
        self.updates[worker](0.01, 0.5)
        np.testing.assert_array_equal(self.replies[worker], self.params)


@pytest.mark.parametrize("rule, momentum", RULES)
def test_rows_of_inputs_that_are_0_are_left_out_to_the_same_bits(rule, momentum, monkeypatch):
    sparse = Pushes(rule, momentum)
    whole = property(lambda self: False)
    with monkeypatch.context() as patch:
        patch.setattr("mpi_rl.learning.update_rules.UpdateRule._is_sparse", whole)
        dense = Pushes(rule, momentum)
    for number in range(30):
        worker = number % 5 == 0  # which lets the other's updates pass, five at a time
        for pushes in (sparse, dense):
            pushes.push(number, int(worker))
        np.testing.assert_array_equal(sparse.params, dense.params)
    if rule == "rmsprop":
        at = [each.rule.statistics["mean_square"] for each in (sparse, dense)]
        assert not np.array_equal(*at)  # something has been left for later
    sparse.rule.settle()
    for one, other in zip(sparse.rule.statistics.values(), dense.rule.statistics.values()):
        np.testing.assert_array_equal(one, other)
    for number in range(30, 36):
        for pushes in (sparse, dense):
            pushes.push(number, number % 2)
        np.testing.assert_array_equal(sparse.params, dense.params)


@pytest.mark.parametrize("missed", [1, 255, 256, 257, 3000, 30_000])
def test_statistics_of_rows_left_out_decay_as_often_as_they_were(missed):
    layout = Layout([Layer("trunk", 2, 80)], num_rows=1, always=True)
    pushes = Pushes("rmsprop", layout=layout)
    (x, delta), bias = layout.views(pushes.pushes[0])[0]
    x[:], delta[:], bias[:] = [1, 1], 2, 0
    pushes.updates[0](0.01, 1.0)
    mean_square = pushes.rule.statistics["mean_square"][:160].reshape(2, 80)
    expected = mean_square[0].copy()
    x[:] = [0, 1]
    for _ in range(missed):
        pushes.updates[0](0.01, 1.0)
        expected *= np.float32(0.99)
    pushes.rule.settle()
    np.testing.assert_array_equal(mean_square[0], expected)


@pytest.mark.parametrize("rule, momentum", RULES)
@pytest.mark.parametrize("rows", [0, 5])
def test_threads_change_no_bit(rule, momentum, rows):
    layout, rng = Layout(layers(atari()), rows), np.random.default_rng(1)
    start = rng.normal(size=layout.num_params).astype(np.float32)
    push = rng.normal(size=layout.size).astype(np.float32)
    if rows:
        x = layout.views(push)[2][0].x
        x[:, ::3] = 0
    config = settings(update_rule=rule, momentum=momentum, weight_decay=0.0, epsilon=0.1)

    def trained():
        params, reply = start.copy(), np.zeros_like(start)
        update = make_update_rule(config, params, 1, layout).bind(push, reply, 0)
        for _ in range(3):
            update(0.01, 0.5)
        np.testing.assert_array_equal(reply, params)
        return params

    alone = trained()
    for threads in (2, 3, 5):
        assert kernels.start_threads(threads) >= threads
        np.testing.assert_array_equal(trained(), alone)


@pytest.mark.parametrize("rows", [5, 3, 1])
@pytest.mark.parametrize("spec", [atari(), atari("atari_2015"), mlp(64, 48)])
def test_networks_write_factors_whose_product_is_their_gradient(spec, rows):
    rng, times = np.random.default_rng(rows), 5
    params, layout = initial_params(spec, 1), Layout(layers(spec), times, always=True)
    grads, push = np.zeros_like(params), np.full(layout.size, 9, np.float32)
    networks = [
        make_network(spec, params, grads, times + 2, 1),
        make_network(spec, layout.from_file(params), push, times + 2, 1, layout),
    ]
    for count in (times, rows):  # what a longer rollout has left must not matter
        seen = rng.integers(255, size=(count, 1, *spec.observation_shape), dtype=np.uint8)
        above = rng.normal(size=(count, spec.num_actions)).astype(np.float32)
        by_values = rng.normal(size=count).astype(np.float32)
        found = []
        for network in networks:
            logits = [network.logits(time, seen[time]).copy() for time in range(count)]
            network.values(0, count)
            found += [(logits, network.forward(slice(count))[0][:, None])]
            network.backward(slice(count), above, by_values)
        for one, other in zip(*found):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
        whole = layout.to_file(layout.gradient(push, np.zeros_like(params)))
        np.testing.assert_allclose(whole, grads, rtol=1e-4, atol=1e-4 * np.abs(grads).max())


def test_what_is_factored_is_decided_by_sizes():
    def sizes(spec, **changes):
        layout = layout_of(settings(**changes), spec)
        return layout.size, layout.num_params, sum(part.inputs > 0 for part in layout.parts)

    size, whole, count = sizes(atari())
    assert count == 1 and 4 * size < 120_000 < 4 * whole / 20
    assert sizes(atari(), push="gradient")[2] == 0
    assert sizes(atari(), envs_per_worker=16)[2] == 0  # 80 rows
    assert sizes(mlp(128, 128))[2] == 0 and sizes(mlp(512, 512))[2] == 2
    assert sizes(mlp(128, 128), push="factors")[2] == 4  # where they are smaller
    with pytest.raises(UserError, match="n_steps x envs_per_worker = 2000: must be"):
        sizes(mlp(128, 128), push="factors", n_steps=2000)


def test_without_compiled_kernels_gradients_are_pushed(monkeypatch):
    monkeypatch.setattr(kernels, "AVAILABLE", False)
    assert not layout_of(settings(), atari()).has_factors
    with pytest.raises(UserError, match="no compiled kernels"):
        layout_of(settings(push="factors"), atari())
    assert layout_of(settings(push="factors"), mlp(512, 512)).has_factors


def test_a_rule_goes_on_from_what_a_run_file_has_of_it():
    layout, start = Layout(STACK, 3, always=True), initial_of(STACK)
    config = settings(update_rule="rmsprop", epsilon=0.1, max_grad_norm=0.0)

    def rule_from(params):
        slot = Slot(layout.num_params, 1, num_pushed=layout.size)
        return GradientRule(config, params, [slot], [0], layout)

    def push(rule, numbers):
        for number in numbers:
            made = Pushes("rmsprop", layout=layout)
            made.push(number, 0)
            rule.slots[0].grads[:] = made.pushes[0]
            rule.apply(0, 0.01)

    whole, half = rule_from(layout.from_file(start)), rule_from(layout.from_file(start))
    push(whole, range(8))
    push(half, range(4))
    saved = {name: values.copy() for name, values in half.state().items()}
    assert not np.array_equal(saved["params"], half.params)  # another order
    again = rule_from(np.zeros_like(start))
    again.restore(saved)
    push(again, range(4, 8))
    for name, values in whole.state().items():
        np.testing.assert_array_equal(values, again.state()[name])
