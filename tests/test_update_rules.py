import tracemalloc

import numpy as np
import pytest
import torch

from mpi_rl.compiled import kernels, memory
from mpi_rl.config import Config
from mpi_rl.learning.update_rules import clipping, learning_rate_at, make_update_rule

SETTINGS = dict(rmsprop_decay=0.99, epsilon=0.1, momentum=0.0, weight_decay=0.0)


@pytest.fixture(params=["compiled", "plain"], autouse=True)
def both_ways(request, monkeypatch):
    """Run each test on the compiled rules and on those in NumPy."""
    assert kernels.AVAILABLE, "update_rules.c was not built when the package was installed"
    monkeypatch.setattr(kernels, "AVAILABLE", request.param == "compiled")


def rule_of(name, params, num_workers=1, **changes):
    return make_update_rule(Config(update_rule=name, **SETTINGS | changes), params, num_workers)


def rule(name, params, num_workers=1, **changes):
    """Return update(grads, learning_rate, worker, scale=1) that checks the reply too."""
    made = rule_of(name, params, num_workers, **changes)

    def update(grads, learning_rate, worker, scale=1.0):
        given, reply = grads.copy(), np.full_like(params, np.nan)
        made.bind(grads, reply, worker)(learning_rate, scale)
        np.testing.assert_array_equal(reply, params)
        np.testing.assert_array_equal(grads, given)

    update.statistics = made.statistics
    return update


def vector(*values):
    return np.array(values, np.float32)


def test_rmsprop_has_epsilon_inside_the_root():
    params = vector(1.0)
    rule("rmsprop", params, rmsprop_decay=0.75, epsilon=5.0)(vector(4.0), 0.3, 0)
    # g = .25 * 16 = 4, so the step is .3 * 4 / sqrt(4 + 5) = .4;
    # epsilon outside the root would give .3 * 4 / (2 + 5) = .171.
    assert params[0] == pytest.approx(0.6)


def test_rmsprop_shares_its_mean_square_among_workers():
    params = vector(0.0)
    update = rule("rmsprop", params, 2, rmsprop_decay=0.5, epsilon=1.0)
    update(vector(2.0), 1.0, 0)  # g = 2, step 2 / sqrt(3)
    update(vector(0.0), 1.0, 1)  # g = 1, no step
    update(vector(4.0), 1.0, 0)  # g = 8.5, step 4 / sqrt(9.5)
    assert params[0] == pytest.approx(-2 / 3**0.5 - 4 / 9.5**0.5)
    assert update.statistics["mean_square"][0] == pytest.approx(8.5)


def test_adam_equals_torch():
    rng = np.random.default_rng(0)
    params = rng.normal(size=9).astype(np.float32)
    reference = torch.nn.Parameter(torch.from_numpy(params.copy()))
    optimizer = torch.optim.Adam([reference], lr=0.01, eps=1e-8)
    update = rule("adam", params, 3, epsilon=1e-8)
    for step in range(20):
        grads = rng.normal(size=9).astype(np.float32)
        reference.grad = torch.from_numpy(grads.copy())
        optimizer.step()
        update(grads, 0.01, step % 3)
    np.testing.assert_allclose(params, reference.detach().numpy(), rtol=1e-5)


def test_sgd_keeps_one_velocity_per_worker():
    params = vector(0.0)
    update = rule("sgd", params, 2, momentum=0.5)
    for worker, grad in ((0, 4.0), (1, 8.0), (0, 2.0), (1, 0.0)):
        update(vector(grad), 1.0, worker)
    # worker 0: 4, then .5 * 4 + 2 = 4; worker 1: 8, then .5 * 8 = 4
    assert params[0] == -(4 + 8 + 4 + 4)


def test_sgd_with_weight_decay_equals_torch():
    params = vector(1.0, -2.0)
    reference = torch.nn.Parameter(torch.from_numpy(params.copy()))
    optimizer = torch.optim.SGD([reference], lr=0.1, momentum=0.9, weight_decay=0.01)
    update = rule("sgd", params, momentum=0.9, weight_decay=0.01)
    for grads in (vector(1, 2), vector(-3, 1), vector(0, 0.5)):
        reference.grad = torch.from_numpy(grads.copy())
        optimizer.step()
        update(grads, 0.1, 0)
    np.testing.assert_allclose(params, reference.detach().numpy(), rtol=1e-6)


@pytest.mark.parametrize("name", ["rmsprop", "adam", "sgd"])
def test_restored_statistics_continue_bit_for_bit(name):
    rng = np.random.default_rng(1)
    grads = rng.normal(size=(6, 50)).astype(np.float32)
    whole, first = np.zeros((2, 50), np.float32)
    update = rule(name, whole, 2, momentum=0.9)
    for step in range(6):
        update(grads[step].copy(), 0.01, step % 2)
    before = rule(name, first, 2, momentum=0.9)
    for step in range(3):
        before(grads[step].copy(), 0.01, step % 2)
    after = rule(name, first, 2, momentum=0.9)
    for key, values in before.statistics.items():
        after.statistics[key][:] = values
    for step in range(3, 6):
        after(grads[step].copy(), 0.01, step % 2)
    np.testing.assert_array_equal(first, whole)


@pytest.mark.parametrize("name", ["rmsprop", "adam", "sgd"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_scale_multiplies_the_gradient(name, momentum):
    whole, scaled = np.ones((2, 40), np.float32)
    grads = np.random.default_rng(2).normal(size=(3, 40)).astype(np.float32)
    update = rule(name, whole, momentum=momentum, weight_decay=0.1)
    update_scaled = rule(name, scaled, momentum=momentum, weight_decay=0.1)
    for each in grads:
        update(each / 4, 0.01, 0)
        update_scaled(each, 0.01, 0, scale=0.25)
    np.testing.assert_allclose(scaled, whole, rtol=1e-6)


@pytest.mark.parametrize(
    "name, momentum", [("rmsprop", 0.0), ("adam", 0.0), ("sgd", 0.0), ("sgd", 0.9)]
)
def test_the_reply_may_be_written_over_the_gradient(name, momentum):
    apart, over = np.ones((2, 1001), np.float32)
    changes = {"momentum": momentum, "weight_decay": 0.1}
    rules = [rule_of(name, params, **changes) for params in (apart, over)]
    for grads in np.random.default_rng(3).normal(size=(3, 1001)).astype(np.float32):
        rules[0].bind(grads, np.zeros_like(grads), 0)(0.01, 0.5)
        rules[1].bind(grads, grads, 0)(0.01, 0.5)
        np.testing.assert_array_equal(over, apart)
        np.testing.assert_array_equal(grads, over)


@pytest.mark.parametrize("name", ["rmsprop", "adam", "sgd"])
def test_an_update_allocates_nothing_of_the_parameters_size(name):
    params = np.zeros(1_000_000, np.float32)
    grads, reply = np.ones_like(params), np.zeros_like(params)
    update = rule_of(name, params, momentum=0.9).bind(grads, reply, 0)
    update(0.1, 1.0)  # the first call may make room
    tracemalloc.start()
    for _ in range(3):
        update(0.1, 1.0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < params.nbytes / 10


@pytest.mark.parametrize("name", ["rmsprop", "adam", "sgd"])
def test_an_update_binds_nothing(name, monkeypatch):
    bound = []
    bind = kernels.bound
    monkeypatch.setattr(kernels, "bound", lambda *words: bound.append(words[0]) or bind(*words))
    params = np.zeros(3, np.float32)
    slots = [(np.ones_like(params), np.zeros_like(params)) for _ in range(2)]
    made = rule_of(name, params, 2, momentum=0.9)
    updates = [made.bind(*slot, worker) for worker, slot in enumerate(slots)]
    for turn in range(6):
        updates[turn % 2](0.1, 1.0)
    assert len(bound) == (2 if kernels.AVAILABLE else 0)


@pytest.mark.parametrize("name", ["rmsprop", "adam"])
def test_parameters_and_statistics_lie_apart_in_their_memory_pages(name):
    params = memory.vector(677_943)
    statistics = rule_of(name, params).statistics.values()
    vectors = [params, *(array for array in statistics if array.size == params.size)]
    places = sorted(array.ctypes.data % 4096 for array in vectors)
    assert len(vectors) > 1 and min(np.diff(places)) >= 1024


@pytest.mark.parametrize("size", [3, 677_943])
def test_a_vector_begins_where_it_is_to_in_its_page(size):
    for place in range(4):
        made = memory.vector(size, place)
        assert made.ctypes.data % 4096 == 1024 * place and made.shape == (size,)
        assert made.dtype == np.float32 and not made.any()
        made[:] = 1


def test_clipping_scales_to_the_norm_and_only_down():
    assert clipping(5.0, 10.0) == clipping(5.0, 0.0) == 1.0
    assert clipping(5.0, 1.0) == pytest.approx(0.2)


def test_learning_rate_anneals_to_zero_at_the_budget_and_stays_there():
    assert [learning_rate_at(step, 0.4, "linear", 100) for step in (0, 25, 100, 110)] == [
        0.4,
        pytest.approx(0.3),
        0,
        0,
    ]
    assert learning_rate_at(99, 0.4, "constant", 100) == 0.4
