"""One worker's learner: act, collect a rollout, turn the rollout into a gradient."""

import math
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch
from torch.nn import functional

from mpi_rl.config import Config
from mpi_rl.envs import EnvSpec, make_envs
from mpi_rl.networks import ActorCritic, NetworkSpec, bind, make_policy
from mpi_rl.returns import n_step_returns


@dataclass
class Rollout:
    """T steps of E environments under fixed parameters; arrays are reused by the next rollout."""

    observations: np.ndarray  # (T + 1, E, *shape): what was acted on, and what the last step led to
    actions: np.ndarray  # (T, E) int64
    rewards: np.ndarray  # (T, E) float32, scaled and clipped for learning
    terminated: np.ndarray  # (T, E) bool
    truncated: np.ndarray  # (T, E) bool
    final_observations: list[tuple[int, int, np.ndarray]]  # (t, e, observation) where truncated
    episode_returns: list[float]  # of episodes that ended here, raw and undiscounted
    episode_lengths: list[int]  # the same episodes, in steps
    env_s: float  # seconds spent in the environments
    act_s: float  # seconds spent choosing actions


@dataclass
class Losses:
    """Means per step of a rollout's loss terms, unweighted, and the norm of the whole gradient."""

    policy_loss: float
    value_loss: float
    entropy: float
    grad_norm: float


def make_rng(seed: int, worker: int) -> np.random.Generator:
    """Return the random stream of ``worker`` (0-based), its own for every seed.

    SFC64: fast, and its state is a few plain numbers, which travel with every push.
    """
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(seed, spawn_key=(worker,))))


def rng_state(rng: np.random.Generator) -> np.ndarray:
    """Return the generator's state as six uint64 numbers."""
    state = rng.bit_generator.state
    return np.array([*state["state"]["state"], state["has_uint32"], state["uinteger"]], np.uint64)


def set_rng_state(rng: np.random.Generator, state: np.ndarray) -> None:
    """Undo ``rng_state``."""
    rng.bit_generator.state = {
        "bit_generator": "SFC64",
        "state": {"state": state[:4].copy()},
        "has_uint32": int(state[4]),
        "uinteger": int(state[5]),
    }


class Agent:
    """Plays ``envs_per_worker`` environments and computes gradients into the worker's slot."""

    def __init__(
        self,
        config: Config,
        spec: EnvSpec,
        network: NetworkSpec,
        params: np.ndarray,
        grads: np.ndarray,
        rng: np.random.Generator,
    ) -> None:
        self.rng, self._config, self._grads = rng, config, grads
        self._network = bind(ActorCritic(network), params, grads)
        steps, envs = config.n_steps, config.envs_per_worker
        self._policy = make_policy(self._network, envs)
        self._envs = make_envs(spec, envs)
        self._num_actions = spec.num_actions
        dtype = np.uint8 if config.network != "mlp" else np.float32
        self._rollout = Rollout(
            np.zeros((steps + 1, envs, *spec.observation_shape), dtype),
            np.zeros((steps, envs), np.int64),
            np.zeros((steps, envs), np.float32),
            np.zeros((steps, envs), bool),
            np.zeros((steps, envs), bool),
            [],
            [],
            [],
            0.0,
            0.0,
        )
        self._last = steps  # where the last rollout ended, and the next one's first observation is
        self._episode_return, self._episode_length = np.zeros(envs), np.zeros(envs, np.int64)

    def reset(self) -> None:
        """Start fresh episodes in all environments, seeded from the worker's random stream."""
        seeds = self.rng.integers(2**31 - 1, size=self._config.envs_per_worker)
        self._rollout.observations[self._last] = self._envs.reset(seeds)
        self._episode_return[:], self._episode_length[:] = 0, 0

    def collect(self) -> Rollout:
        """Play n_steps in every environment; a single one stops at its episode's end (S3)."""
        buffers, config = self._rollout, self._config
        now = perf_counter()
        noise = self.rng.gumbel(size=(config.n_steps, config.envs_per_worker, self._num_actions))
        buffers.observations[0] = buffers.observations[self._last]
        returns: list[float] = []
        lengths: list[int] = []
        final_observations = []
        env_s = act_s = 0.0
        for t in range(config.n_steps):
            # The largest of logits + Gumbel noise is a draw from softmax(logits).
            (self._policy(buffers.observations[t]) + noise[t]).argmax(
                axis=1, out=buffers.actions[t]
            )
            before, now = now, perf_counter()
            act_s += now - before
            result = self._envs.step(buffers.actions[t])
            buffers.observations[t + 1] = result.observations
            buffers.rewards[t] = result.rewards
            buffers.terminated[t], buffers.truncated[t] = result.terminated, result.truncated
            self._episode_return += result.rewards
            self._episode_length += 1
            if result.final_observations is not None:
                for e in np.flatnonzero(result.episode_over):
                    returns.append(float(self._episode_return[e]))
                    lengths.append(int(self._episode_length[e]))
                    self._episode_return[e] = self._episode_length[e] = 0
                for e in np.flatnonzero(result.truncated & ~result.terminated):
                    final_observations.append((t, int(e), result.final_observations[e].copy()))
            before, now = now, perf_counter()
            env_s += now - before
            if config.envs_per_worker == 1 and result.final_observations is not None:
                break
        self._last = length = t + 1
        rewards = buffers.rewards[:length]
        rewards *= np.float32(config.reward_scale)
        if config.clip_rewards:
            np.clip(rewards, -1, 1, out=rewards)
        return Rollout(
            buffers.observations[: length + 1],
            buffers.actions[:length],
            rewards,
            buffers.terminated[:length],
            buffers.truncated[:length],
            final_observations,
            returns,
            lengths,
            env_s,
            act_s,
        )

    def learn(self, rollout: Rollout) -> Losses:
        """Write the gradient of the rollout's loss into the slot's grads.

        Raises FloatingPointError if it is not finite.
        """
        self._grads.fill(0)
        loss, losses = actor_critic_loss(self._network, rollout, self._config)
        loss.backward()
        losses.grad_norm = math.sqrt(np.dot(self._grads, self._grads))
        if not math.isfinite(losses.grad_norm):
            raise FloatingPointError(
                f"the gradient's norm is {losses.grad_norm}: policy loss {losses.policy_loss:.4g}, "
                f"value loss {losses.value_loss:.4g}; a smaller learning_rate may be right"
            )
        return losses

    def close(self) -> None:
        """Close the environments."""
        self._envs.close()


def actor_critic_loss(
    network: ActorCritic, rollout: Rollout, config: Config
) -> tuple[torch.Tensor, Losses]:
    """Return the loss of Mnih et al. 2016, algorithm S3, a scalar, and its parts (grad_norm 0).

    loss = 1/E sum_e sum_t [ -log pi(a|s) (R - V(s)) - entropy_coef H(pi(.|s)) + value_coef (R -
    V(s))^2 ], where R is the n-step return and the advantage R - V(s) is a constant for the
    policy's gradient.
    """
    num_steps, num_envs = rollout.actions.shape
    returns = torch.from_numpy(_returns(network, rollout, config.gamma).reshape(-1))
    logits, values = network(torch.from_numpy(_flat(rollout.observations[:num_steps])))
    log_probs = functional.log_softmax(logits, dim=-1)
    chosen = log_probs.gather(1, torch.from_numpy(rollout.actions).view(-1, 1)).squeeze(1)
    errors = returns - values
    policy_loss = -(chosen * errors.detach()).sum()
    value_loss = errors.square().sum()
    entropy = -(log_probs.exp() * log_probs).sum()
    loss = (policy_loss - config.entropy_coef * entropy + config.value_coef * value_loss) / num_envs
    count = num_steps * num_envs
    return loss, Losses(
        policy_loss.item() / count, value_loss.item() / count, entropy.item() / count, 0.0
    )


def _returns(network: ActorCritic, rollout: Rollout, gamma: float) -> np.ndarray:
    """Return the rollout's n-step returns, (T, E), with values under the rollout's parameters."""
    bootstrap = np.zeros(rollout.rewards.shape[1], np.float32)
    final_values = np.zeros_like(rollout.rewards)
    with torch.inference_mode():
        if not (rollout.terminated[-1] | rollout.truncated[-1]).all():
            bootstrap = network(torch.from_numpy(rollout.observations[-1]))[1].numpy()
        if rollout.final_observations:
            steps, envs, observations = zip(*rollout.final_observations)
            final_values[steps, envs] = network(torch.from_numpy(np.stack(observations)))[1].numpy()
    return n_step_returns(
        rollout.rewards, rollout.terminated, rollout.truncated, final_values, bootstrap, gamma
    )


def _flat(observations: np.ndarray) -> np.ndarray:
    return observations.reshape(-1, *observations.shape[2:])
