import copy
import tracemalloc

import numpy as np
import pytest
import torch

from mpi_rl.compiled import kernels
from mpi_rl.learning.losses import actor_critic_loss
from mpi_rl.networks.factors import Layout
from mpi_rl.networks.layers import initial_params, layers, num_params, views
from mpi_rl.networks.make import make_network
from mpi_rl.networks.network import NetworkSpec
from tests.reference import Reference


def spec(
    network="mlp",
    hidden_sizes=(7, 5),
    activation="tanh",
    separate_trunks=True,
    initialization="orthogonal",
    observation_shape=(3,),
    num_actions=4,
):
    return NetworkSpec(
        network,
        hidden_sizes,
        activation,
        separate_trunks,
        initialization,
        observation_shape,
        num_actions,
    )


def atari(network):
    return spec(
        network,
        separate_trunks=False,
        initialization="uniform",
        observation_shape=(4, 84, 84),
        num_actions=6,
    )


SPECS = [
    *(
        spec(activation=activation, separate_trunks=separate, initialization="uniform")
        for activation in ("tanh", "relu")
        for separate in (True, False)
    ),
    atari("atari_2013"),
    atari("atari_2015"),
]


def observations(this, *shape, seed=0):
    rng = np.random.default_rng(seed)
    if this.network == "mlp":
        return rng.normal(size=(*shape, 3)).astype(np.float32)
    pictures = rng.integers(256, size=(*shape, *this.observation_shape), dtype=np.uint8)
    # Rows are black, lit in a pixel or two, or all lit: convnet.c skips what is black.
    lit = rng.choice([0, 0.02, 1], size=(*pictures.shape[:-1], 1))
    return pictures * (rng.random(pictures.shape) < lit)


def gradients(this, num_times, num_envs, played=3, factored=False):
    """Return outputs and gradients of a rollout of ``played`` times, ours and autograd's."""
    layout = Layout(layers(this), factored * num_times * num_envs, always=True)
    rng, params = np.random.default_rng(1), layout.from_file(initial_params(this, 1))
    grads = np.full(layout.size, 9 if factored else np.nan, np.float32)
    network = make_network(this, params, grads, num_times, num_envs, layout)
    params *= 1.5  # the parameters change underneath, as the server's reply changes them
    seen = observations(this, played, num_envs)
    logits = np.stack([network.logits(t, seen[t]).copy() for t in range(played)])
    values = network.values(0, played)
    actions = rng.integers(this.num_actions, size=(played, num_envs))
    returns = rng.normal(size=(played, num_envs)).astype(np.float32)
    _, by_logits, by_values = actor_critic_loss(logits, values, actions, returns, 0.05, 0.25)
    rows = slice(values.size)
    network.backward(rows, by_logits.reshape(values.size, -1), by_values.ravel())
    reference = Reference(this, layout.to_file(params))
    expected = [x.detach().numpy() for x in reference(seen.reshape(-1, *this.observation_shape))]
    _, expected_grads = reference.gradient(seen, actions, returns, 0.05, 0.25)
    whole = layout.to_file(layout.gradient(grads, np.zeros_like(params)))
    ours = logits.reshape(expected[0].shape), values.ravel(), whole
    return ours, (*expected, expected_grads)


@pytest.mark.parametrize("this", SPECS, ids=lambda this: f"{this.network}-{this.activation}")
@pytest.mark.parametrize("num_envs", [1, 4])
@pytest.mark.parametrize("compiled, factored", [(True, True), (True, False), (False, False)])
def test_outputs_and_gradient_equal_autograds(this, num_envs, compiled, factored, monkeypatch):
    assert kernels.AVAILABLE, "convnet.c was not built when the package was installed"
    monkeypatch.setattr(kernels, "AVAILABLE", compiled)
    (*ours, grads), (*expected, expected_grads) = gradients(this, 5, num_envs, factored=factored)
    for one, other in zip(ours, expected):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-6)
    error = np.linalg.norm(grads - expected_grads) / np.linalg.norm(expected_grads)
    # Among 10,000 ReLUs one or two are so near 0 that rounding decides whether they pass anything.
    assert error < (1e-6 if this.network == "mlp" else 5e-3)
    np.testing.assert_allclose(grads, expected_grads, atol=0.01 * np.abs(expected_grads).max())


@pytest.mark.parametrize("this", SPECS, ids=lambda this: f"{this.network}-{this.activation}")
@pytest.mark.parametrize("compiled", [True, False])
def test_a_copy_bound_to_other_vectors_computes_with_those(this, compiled, monkeypatch):
    monkeypatch.setattr(kernels, "AVAILABLE", compiled)
    seen, rng = observations(this, 2, 3), np.random.default_rng(4)
    above = [
        rng.normal(size=(6, *shape)).astype(np.float32) for shape in ((this.num_actions,), ())
    ]

    def played(network):
        logits = [network.logits(time, seen[time]).copy() for time in range(2)]
        values = np.array(network.values(0, 2))
        network.backward(slice(6), *above)
        return *logits, values

    vectors = [initial_params(this, seed) for seed in (1, 2)]
    first = make_network(this, *vectors, 3, 3)
    second = copy.copy(first)
    second.bind(*vectors[::-1])
    for seed, network in enumerate((first, second, first), start=3):
        params, grads = vectors[1 - seed % 2], vectors[seed % 2]
        params[:] = initial_params(this, seed)
        expected = np.zeros_like(params)
        apart = make_network(this, params.copy(), expected, 3, 3)
        for one, other in zip(played(network), played(apart)):
            np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(grads, expected)


@pytest.mark.parametrize("this", SPECS, ids=lambda this: f"{this.network}-{this.activation}")
@pytest.mark.parametrize("rows", [slice(2, 9), [7, 0, 11, 3], [5]], ids=str)
@pytest.mark.parametrize("compiled", [True, False])
def test_any_rows_of_what_was_seen_can_be_learned(this, rows, compiled, monkeypatch):
    monkeypatch.setattr(kernels, "AVAILABLE", compiled)
    rows = np.array(rows) if isinstance(rows, list) else rows
    params, rng = initial_params(this, 1), np.random.default_rng(5)
    grads = np.full_like(params, np.nan)
    network, seen = make_network(this, params, grads, 5, 3), observations(this, 4, 3)
    for time in range(4):
        network.logits(time, seen[time])
    np.testing.assert_array_equal(network.observations[:4], seen)
    params *= 1.5  # since it was acted on
    outputs, chosen = network.forward(rows), seen.reshape(-1, *this.observation_shape)[rows]
    above = [rng.normal(size=output.shape).astype(np.float32) for output in outputs]
    reference = Reference(this, params)
    expected = reference(chosen)
    for one, other in zip(outputs, expected):
        np.testing.assert_allclose(one, other.detach().numpy(), rtol=1e-4, atol=1e-5)
    loss = sum((one * torch.from_numpy(other)).sum() for one, other in zip(expected, above))
    expected = torch.autograd.grad(loss, reference.network.tensors)
    expected = np.concatenate([grad.numpy().ravel() for grad in expected])
    network.backward(rows, *above)
    np.testing.assert_allclose(grads, expected, atol=0.01 * np.abs(expected).max())
    assert np.linalg.norm(grads - expected) < 5e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize("network", ["atari_2013", "atari_2015"])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 11, 16])
@pytest.mark.parametrize("share", [1.0, 0.3, 0.0])  # of inputs that are not 0
def test_a_dense_layer_that_skips_inputs_of_0_computes_products(network, count, share):
    this, rng = atari(network), np.random.default_rng(6)
    layout = Layout(layers(this), count, always=True)
    params = layout.from_file(initial_params(this, 1))
    weight, bias = layout.weights(params)[-3]
    net = make_network(this, params, np.zeros(layout.size, np.float32), count, 1, layout)
    flat, found = net._flat, np.full((count, len(weight)), np.nan, np.float32)
    flat[:] = rng.exponential(size=flat.shape) * (rng.random(flat.shape) < share)
    above = rng.normal(size=(count, len(weight))).astype(np.float32)
    net._dense_forward(flat, found)()
    expected = flat.astype(float) @ weight.T + bias
    np.testing.assert_allclose(found, expected.clip(0), rtol=1e-4, atol=1e-5)
    net._convs[-1].above[:] = np.nan
    net._to_images(above, flat)
    expected = (above.astype(float) @ weight) * (flat > 0)
    found = net._convs[-1].above.reshape(flat.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("network", ["atari_2013", "atari_2015"])
@pytest.mark.parametrize("num_envs", [1, 4])
@pytest.mark.parametrize("factored", [True, False])
def test_avx512_changes_no_bit(network, num_envs, factored, monkeypatch):
    library = kernels._LIBRARY
    if not library.has_avx512():
        pytest.skip("this processor has no AVX-512")
    assert kernels._function("conv_forward") == library.conv_forward_avx512
    wide, _ = gradients(atari(network), 5, num_envs, factored=factored)
    monkeypatch.setattr(kernels, "_function", lambda name: getattr(library, name))
    narrow, _ = gradients(atari(network), 5, num_envs, factored=factored)
    for one, other in zip(wide, narrow):
        np.testing.assert_array_equal(one, other)


def test_a_rollout_allocates_nothing_of_the_parameters_size():
    this = atari("atari_2013")
    params = initial_params(this, 1)
    network = make_network(this, params, np.zeros_like(params), 4, 2)
    seen = observations(this, 2, 2)
    tracemalloc.start()
    for time in range(2):
        network.logits(time, seen[time])
    network.values(0, 2)
    network.backward(slice(4), np.ones((4, 6), np.float32), np.ones(4, np.float32))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0 < most < params.nbytes / 10


def test_parameters_that_are_not_finite_are_not_hidden():
    this = atari("atari_2013")
    params = initial_params(this, 1)
    network = make_network(this, params, np.zeros_like(params), 1, 1)
    views(this, params)[0][0][:] = np.nan
    assert np.isnan(network.logits(0, observations(this, 1))).all()


def test_a_time_is_forgotten_only_when_it_comes_again():
    this = spec()
    params = initial_params(this, 0)
    network = make_network(this, params, np.zeros_like(params), 3, 2)
    first, second = observations(this, 2, 2)
    network.logits(0, first)
    network.logits(1, second)
    both = network.values(0, 2).copy()
    network.logits(0, second)
    again = network.values(0, 2)
    np.testing.assert_array_equal(again[1], both[1])
    np.testing.assert_array_equal(again[0], both[1])


def test_sizes_are_those_of_the_papers():
    # As other implementations count it for Space Invaders.
    assert num_params(atari("atari_2013")) == 677_943
    conv = 32 * (4 * 64 + 1) + 64 * (32 * 16 + 1) + 64 * (64 * 9 + 1)
    assert num_params(atari("atari_2015")) == conv + 512 * (64 * 49 + 1) + 513 * 7
    assert num_params(spec()) == 2 * (4 * 7 + 8 * 5) + 6 * 5
    assert num_params(spec(separate_trunks=False)) == (4 * 7 + 8 * 5) + 6 * 5


def test_layers_are_views_that_cover_the_vector():
    for this in SPECS:
        vector = np.arange(num_params(this), dtype=np.float32)
        pairs = views(this, vector)
        flat = np.concatenate([array.ravel() for pair in pairs for array in pair])
        np.testing.assert_array_equal(flat, vector)
        assert [pair[0].shape for pair in pairs] == [layer.shape for layer in layers(this)]
        vector[:] = -1
        assert all((array == -1).all() for pair in pairs for array in pair)


def test_first_parameters_depend_on_the_seed_alone():
    a, b, c = (initial_params(spec(), seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)


def test_orthogonal_policy_starts_almost_uniform():
    this = spec(hidden_sizes=(64,))
    (hidden, bias), (policy, _), _, (value, _) = views(this, initial_params(this, 0))
    np.testing.assert_allclose(hidden.T @ hidden, 2 * np.eye(3), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(policy, axis=1), 0.01, rtol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(value), 1.0, rtol=1e-4)
    assert not bias.any()


def test_orthogonal_weights_of_a_hidden_layer_as_narrow_as_a_head():
    this = spec(hidden_sizes=(4, 1))  # as many units as actions, and as values
    norms = [np.linalg.norm(weight, 2) for weight, _ in views(this, initial_params(this, 0))]
    expected = [2**0.5, 2**0.5, 0.01, 2**0.5, 2**0.5, 1.0]
    np.testing.assert_allclose(norms, expected, rtol=1e-4)


def test_uniform_glorot_and_normal_have_the_spread_of_their_sources():
    wide = spec(hidden_sizes=(500,), observation_shape=(100,), initialization="glorot")
    weight, bias = views(wide, initial_params(wide, 0))[0]
    assert 0.099 < np.abs(weight).max() <= 0.1 and not bias.any()
    filters = spec("atari_2013", observation_shape=(4, 84, 84), initialization="glorot")
    weight, bias = views(filters, initial_params(filters, 0))[0]
    bound = (6 / (4 * 8 * 8 + 16 * 8 * 8)) ** 0.5  # of 16 filters of 8 x 8 over 4 images
    assert 0.99 * bound < np.abs(weight).max() <= bound and not bias.any()
    wide = spec(hidden_sizes=(400,), observation_shape=(100,), initialization="uniform")
    weight, bias = views(wide, initial_params(wide, 0))[0]
    assert 0.099 < np.abs(weight).max() <= 0.1 and 0.09 < np.abs(bias).max() <= 0.1
    wide = spec(hidden_sizes=(400,), observation_shape=(100,), initialization="normal")
    weight, bias = views(wide, initial_params(wide, 0))[0]
    assert weight.std() == pytest.approx(0.1, rel=0.02) and not bias.any()
