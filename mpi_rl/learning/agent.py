"""One worker's learner: act, collect a rollout, turn the rollout into a gradient."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from mpi_rl.config import Config
from mpi_rl.envs.episodes import Episode
from mpi_rl.envs.make import make_envs
from mpi_rl.envs.spec import EnvSpec
from mpi_rl.learning.losses import Losses, actor_critic_loss
from mpi_rl.learning.returns import n_step_returns, standardized
from mpi_rl.networks.factors import Layout
from mpi_rl.networks.layers import layers
from mpi_rl.networks.make import make_network
from mpi_rl.networks.network import NetworkSpec

NOISE_STEPS = 256  # that noise is drawn for at once; an episode may be much shorter than n_steps


@dataclass
class Rollout:
    """T steps of E environments under fixed parameters; arrays are reused by the next rollout."""

    observations: np.ndarray  # (T, E, *shape), as the network has seen them
    logits: np.ndarray  # (T, E, num_actions) float32, the policy's
    actions: np.ndarray  # (T, E) int64
    rewards: np.ndarray  # (T, E) float32, scaled and clipped for learning
    terminated: np.ndarray  # (T, E) bool
    truncated: np.ndarray  # (T, E) bool
    last_observations: np.ndarray  # (E, *shape): what the last step led to
    final_observations: list[tuple[int, int, np.ndarray]]  # (t, e, observation) where truncated
    episode_returns: list[float]  # of episodes that ended here, raw and undiscounted
    episode_lengths: list[int]  # the same episodes, in steps
    env_s: float  # seconds spent in the environments
    act_s: float  # seconds spent choosing actions


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


def draw(logits: np.ndarray, rng: np.random.Generator, greedy: bool) -> np.ndarray:
    """Return actions, (E,), for logits (E, num_actions): drawn from their softmax, or the largest.

    The largest of logits + Gumbel noise is a draw from softmax(logits).
    """
    return (logits if greedy else logits + rng.gumbel(size=logits.shape)).argmax(axis=1)


class Agent:
    """Plays ``envs_per_worker`` environments, and computes gradients of its rollouts."""

    def __init__(
        self,
        config: Config,
        spec: EnvSpec,
        network: NetworkSpec,
        pairs: Sequence[tuple[np.ndarray, np.ndarray]],
        rng: np.random.Generator,
        layout: Layout | None = None,
    ) -> None:
        """Take the vectors, (P,), of parameters and gradients; where there are ``pairs``, by turns.

        The agent begins with the first pair. Where a ``layout`` of pushes is given, it has what is
        written as gradients, (F,).
        """
        self._layout = layout or Layout(layers(network))
        self.rng, self._config = rng, config
        steps, envs = config.n_steps, config.envs_per_worker
        # A time for each step, one for what the last step led to, and one for other observations.
        self._networks = [make_network(network, *pairs[0], steps + 2, envs, self._layout)]
        for pair in pairs[1:]:
            self._networks.append(copy.copy(self._networks[0]))
            self._networks[-1].bind(*pair)
        self._pairs = pairs
        self.use(0)
        self._envs = make_envs(spec, envs)
        self._observations = np.zeros((envs, *spec.observation_shape), np.float32)
        self._logits = np.zeros((steps, envs, spec.num_actions), np.float32)
        self._actions = np.zeros((steps, envs), np.int64)
        self._rewards = np.zeros((steps, envs))  # raw
        self._terminated, self._truncated = np.zeros((2, steps, envs), bool)

    def use(self, half: int) -> None:
        """Play by the parameters of ``pairs[half]``, and write gradients into it."""
        self._network, (self.params, self.grads) = self._networks[half], self._pairs[half]

    def reset(self) -> None:
        """Start fresh episodes in all environments, seeded from the worker's random stream."""
        seeds = self.rng.integers(2**31 - 1, size=self._config.envs_per_worker)
        self._observations = self._envs.reset(seeds)

    def collect(self) -> Rollout:
        """Play n_steps in every environment; a single one stops at its episode's end (S3)."""
        config, network, logits, actions = self._config, self._network, self._logits, self._actions
        now = perf_counter()
        observations = self._observations
        self._terminated[:] = self._truncated[:] = False
        episodes: list[Episode] = []
        final_observations = []
        env_s = act_s = 0.0
        for t in range(config.n_steps):
            if t % NOISE_STEPS == 0:
                noise = self._noise(min(NOISE_STEPS, config.n_steps - t))
            logits[t] = network.logits(t, observations)
            # As ``draw`` does, with the noise of many steps drawn at once.
            row = noise[t % NOISE_STEPS]
            np.add(row, logits[t], row).argmax(1, actions[t])
            before, now = now, perf_counter()
            act_s += now - before
            result = self._envs.step(actions[t])
            observations, self._rewards[t] = result.observations, result.rewards
            if result.final_observations is not None:
                self._terminated[t], self._truncated[t] = result.terminated, result.truncated
                if config.time_limit_terminates:
                    self._terminated[t] |= result.truncated
                episodes += result.episodes
                for e in np.flatnonzero(result.truncated & ~self._terminated[t]):
                    final_observations.append((t, int(e), result.final_observations[e].copy()))
            before, now = now, perf_counter()
            env_s += now - before
            if config.envs_per_worker == 1 and result.final_observations is not None:
                break
        self._observations, length = observations, t + 1
        rewards = (self._rewards[:length] * config.reward_scale).astype(np.float32)
        if config.clip_rewards:
            np.clip(rewards, -1, 1, out=rewards)
        return Rollout(
            network.observations[:length],
            logits[:length],
            actions[:length],
            rewards,
            self._terminated[:length],
            self._truncated[:length],
            observations,
            final_observations,
            [episode.episode_return for episode in episodes],
            [episode.episode_length for episode in episodes],
            env_s,
            act_s,
        )

    def _noise(self, num_steps: int) -> np.ndarray:
        """Return what makes the largest logit a draw, (num_steps, E, num_actions)."""
        share, (_, envs, num_actions) = self._config.uniform_action_prob, self._logits.shape
        noise = self.rng.gumbel(size=(num_steps, envs, num_actions)).astype(np.float32)
        if share:  # where an action is drawn uniformly, it is sure to win
            at = np.nonzero(self.rng.random((num_steps, envs)) < share)
            noise[*at, self.rng.integers(num_actions, size=len(at[0]))] = math.inf
        return noise

    def learn(self, rollout: Rollout) -> tuple[Losses, float]:
        """Write the gradient of the last rollout's loss, or its factors, into the pair in use.

        Returns the loss's terms and the gradient's norm. Raises FloatingPointError if that is not
        finite.
        """
        config, length = self._config, len(rollout.actions)
        if not config.learn_last_step and rollout.episode_returns:
            length -= 1
        if not length:
            self.grads[:] = 0
            return Losses(0.0, 0.0, 0.0), 0.0
        values, returns = self._evaluate(rollout, length)
        played = rollout.logits[:length], values, rollout.actions[:length], returns
        losses, logits_grad, values_grad = actor_critic_loss(
            *played, config.entropy_coef, config.value_coef, config.huber_delta
        )
        if config.mean_loss:
            logits_grad, values_grad = logits_grad / len(values), values_grad / len(values)
        rows = slice(values.size)
        self._network.backward(rows, logits_grad.reshape(values.size, -1), values_grad.ravel())
        grad_norm = self._layout.norm(self.grads)
        if not math.isfinite(grad_norm):
            raise FloatingPointError(
                f"the gradient's norm is {grad_norm}: policy loss {losses.policy_loss:.4g}, "
                f"value loss {losses.value_loss:.4g}; a smaller learning_rate may be right"
            )
        return losses, grad_norm

    def _evaluate(self, rollout: Rollout, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return V and the n-step return of ``count`` steps, (count, E), by its parameters.

        Where they are not all, they are all that there was of an episode.
        """
        network, length = self._network, len(rollout.actions)
        final_values = np.zeros_like(rollout.rewards)
        for t, e, observation in rollout.final_observations:
            others = np.broadcast_to(observation, rollout.last_observations.shape)
            network.logits(length, np.ascontiguousarray(others))
            final_values[t, e] = network.values(length, length + 1)[0, 0]
        network.logits(length, rollout.last_observations)
        values = network.values(0, length + 1)
        last = values[length if self._config.bootstrap == "next" else length - 1]
        returns = n_step_returns(
            rollout.rewards[:count],
            rollout.terminated[:count],
            rollout.truncated[:count],
            final_values[:count],
            last if count == length else np.zeros_like(last),
            self._config.gamma,
        )
        if self._config.standardize_returns:
            returns = standardized(returns)
        return values[:count], returns

    def close(self) -> None:
        """Close the environments."""
        self._envs.close()
