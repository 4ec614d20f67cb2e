"""One worker's learner: act, collect a rollout, turn the rollout into a gradient."""

import copy
import math
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from mpi_rl import fused
from mpi_rl.config import Config
from mpi_rl.convnet import ConvNet
from mpi_rl.envs import EnvSpec, make_envs
from mpi_rl.losses import Losses, actor_critic_loss
from mpi_rl.mlp import Mlp
from mpi_rl.networks import Network, NetworkSpec
from mpi_rl.returns import n_step_returns, standardized

NOISE_STEPS = 256  # that noise is drawn for at once; an episode may be much shorter than n_steps


@dataclass
class Rollout:
    """T steps of E environments under fixed parameters; arrays are reused by the next rollout."""

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


def make_network(
    spec: NetworkSpec, params: np.ndarray, grads: np.ndarray, num_times: int, num_envs: int
) -> Network:
    """Return a network on ``params`` and ``grads``, (P,), for rollouts of ``num_times`` times.

    Torch is imported only where ``conv.c`` was not compiled.
    """
    if spec.network == "mlp":
        return Mlp(spec, params, grads, num_times, num_envs)
    if fused.AVAILABLE:
        return ConvNet(spec, params, grads, num_times, num_envs)
    from mpi_rl.torchnet import TorchNet

    return TorchNet(spec, params, grads, num_times, num_envs)


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
        self.rng, self.params, self.grads = rng, params, grads
        self._config = config
        steps, envs = config.n_steps, config.envs_per_worker
        # A time for each step, one for what the last step led to, and one for other observations.
        self._network = make_network(network, params, grads, steps + 2, envs)
        self._networks = {(id(params), id(grads)): (self._network, params, grads)}
        self._envs = make_envs(spec, envs)
        self._observations = np.zeros((envs, *spec.observation_shape), np.float32)
        self._logits = np.zeros((steps, envs, spec.num_actions), np.float32)
        self._actions = np.zeros((steps, envs), np.int64)
        self._rewards = np.zeros((steps, envs))  # raw
        self._terminated, self._truncated = np.zeros((2, steps, envs), bool)
        self._episode_return, self._episode_length = np.zeros(envs), np.zeros(envs, np.int64)

    def use(self, params: np.ndarray, grads: np.ndarray) -> None:
        """Play by ``params`` and write gradients to ``grads``, (P,), until told otherwise.

        Binding a network takes time; to one of the pairs that were used before, none.
        """
        pair = id(params), id(grads)
        if pair not in self._networks:
            network = copy.copy(self._network)
            network.bind(params, grads)
            self._networks[pair] = network, params, grads
        self._network, self.params, self.grads = self._networks[pair]

    def reset(self) -> None:
        """Start fresh episodes in all environments, seeded from the worker's random stream."""
        seeds = self.rng.integers(2**31 - 1, size=self._config.envs_per_worker)
        self._observations = self._envs.reset(seeds)
        self._episode_return[:], self._episode_length[:] = 0, 0

    def collect(self) -> Rollout:
        """Play n_steps in every environment; a single one stops at its episode's end (S3)."""
        config, network, logits, actions = self._config, self._network, self._logits, self._actions
        now = perf_counter()
        observations = self._observations
        self._terminated[:] = self._truncated[:] = False
        ends: list[tuple[int, int]] = []  # (t, e) of every recorded episode's last step
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
                ends += [(t, int(e)) for e in np.flatnonzero(result.episode_over)]
                for e in np.flatnonzero(result.truncated & ~self._terminated[t]):
                    final_observations.append((t, int(e), result.final_observations[e].copy()))
            before, now = now, perf_counter()
            env_s += now - before
            if config.envs_per_worker == 1 and result.final_observations is not None:
                break
        self._observations, length = observations, t + 1
        returns, lengths = self._finish_episodes(ends, length)
        rewards = (self._rewards[:length] * config.reward_scale).astype(np.float32)
        if config.clip_rewards:
            np.clip(rewards, -1, 1, out=rewards)
        return Rollout(
            logits[:length],
            actions[:length],
            rewards,
            self._terminated[:length],
            self._truncated[:length],
            observations,
            final_observations,
            returns,
            lengths,
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

    def _finish_episodes(
        self, ends: list[tuple[int, int]], length: int
    ) -> tuple[list[float], list[int]]:
        """Return the returns and lengths of episodes that ended, and carry the others' over."""
        returns, lengths = [], []
        begin = np.zeros(self._config.envs_per_worker, np.int64)  # of each one's current episode
        for t, e in ends:
            returns.append(
                float(self._episode_return[e] + self._rewards[begin[e] : t + 1, e].sum())
            )
            lengths.append(int(self._episode_length[e] + t + 1 - begin[e]))
            self._episode_return[e] = self._episode_length[e] = 0
            begin[e] = t + 1
        for e in range(len(begin)):
            self._episode_return[e] += self._rewards[begin[e] : length, e].sum()
        self._episode_length += length - begin
        return returns, lengths

    def learn(self, rollout: Rollout) -> tuple[Losses, float]:
        """Write the gradient of the last rollout's loss into the slot's grads.

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
        self._network.backward(logits_grad, values_grad)
        grad_norm = math.sqrt(np.dot(self.grads, self.grads))
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
