import numpy as np
import pytest
import torch

from mpi_rl.networks import ActorCritic, NetworkSpec, bind, initial_params, make_policy, num_params

torch.set_num_threads(1)


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
    return spec(network, observation_shape=(4, 84, 84), num_actions=6)


def test_sizes_are_those_of_the_papers():
    # As other implementations count it for Space Invaders.
    assert num_params(atari("atari_2013")) == 677_943
    conv = 32 * (4 * 64 + 1) + 64 * (32 * 16 + 1) + 64 * (64 * 9 + 1)
    assert num_params(atari("atari_2015")) == conv + 512 * (64 * 49 + 1) + 513 * 7
    assert num_params(spec()) == 2 * (4 * 7 + 8 * 5) + 6 * 5
    assert num_params(spec(separate_trunks=False)) == (4 * 7 + 8 * 5) + 6 * 5


def test_parameters_and_gradients_are_views_of_the_flat_vectors():
    params = initial_params(spec(), 0)
    grads = np.zeros_like(params)
    network = bind(ActorCritic(spec()), params, grads)
    logits, values = network(torch.ones(2, 3))
    (logits.square().sum() + values.sum()).backward()
    assert np.count_nonzero(grads) > grads.size // 2
    flat = np.concatenate(
        [parameter.detach().numpy().ravel() for parameter in network.parameters()]
    )
    np.testing.assert_array_equal(flat, params)
    params[:] = 0
    assert all(not parameter.any() for parameter in network.parameters())
    before = grads.copy()
    network(torch.ones(2, 3))[1].sum().backward()  # accumulates in place, still in the same memory
    assert not np.array_equal(before, grads)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("separate_trunks", [True, False])
def test_numpy_policy_equals_torch(activation, separate_trunks):
    this = spec(activation=activation, separate_trunks=separate_trunks, initialization="uniform")
    params = initial_params(this, 3)
    network = bind(ActorCritic(this), params)
    policy = make_policy(network, 6)
    observations = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    for _ in range(2):  # again after the parameters changed underneath, as the server's reply does
        with torch.inference_mode():
            expected = network(torch.from_numpy(observations))[0].numpy()
        np.testing.assert_allclose(policy(observations), expected, rtol=1e-5, atol=1e-6)
        params *= 2


def test_images_are_scaled_to_unit_range():
    network = bind(ActorCritic(atari("atari_2013")), initial_params(atari("atari_2013"), 0))
    pixels = torch.randint(0, 256, (2, 4, 84, 84), dtype=torch.uint8)
    first = network.trunk[1]
    np.testing.assert_allclose(
        network.trunk[:2](pixels).detach(),
        first(pixels.float() / 255).detach(),
        rtol=1e-4,
        atol=1e-5,
    )


def test_first_parameters_depend_on_the_seed_alone():
    a, b, c = (initial_params(spec(), seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)


def test_orthogonal_policy_starts_almost_uniform():
    network = bind(
        ActorCritic(spec(hidden_sizes=(64,))), initial_params(spec(hidden_sizes=(64,)), 0)
    )
    weight = network.policy[0].weight.detach().numpy()
    np.testing.assert_allclose(weight.T @ weight, 2 * np.eye(3), atol=1e-5)
    np.testing.assert_allclose(network.policy[-1].weight.detach().norm(dim=1), 0.01, rtol=1e-4)
    np.testing.assert_allclose(network.value[-1].weight.detach().norm(), 1.0, rtol=1e-4)


def test_uniform_and_normal_have_the_spread_of_their_sources():
    wide = spec(hidden_sizes=(400,), observation_shape=(100,), initialization="uniform")
    weight = bind(ActorCritic(wide), initial_params(wide, 0)).policy[0].weight.detach().numpy()
    assert 0.099 < np.abs(weight).max() <= 0.1
    wide = spec(hidden_sizes=(400,), observation_shape=(100,), initialization="normal")
    layer = bind(ActorCritic(wide), initial_params(wide, 0)).policy[0]
    assert layer.weight.detach().numpy().std() == pytest.approx(0.1, rel=0.02)
    assert not layer.bias.detach().numpy().any()
