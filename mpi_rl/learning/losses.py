"""The actor-critic loss of a rollout, and its gradient by the network's outputs."""

from typing import NamedTuple

import numpy as np


class Losses(NamedTuple):
    """Means per step of a rollout's loss terms, unweighted."""

    policy_loss: float
    value_loss: float
    entropy: float


def actor_critic_loss(
    logits: np.ndarray,
    values: np.ndarray,
    actions: np.ndarray,
    returns: np.ndarray,
    entropy_coef: float,
    value_coef: float,
    huber_delta: float = 0.0,
) -> tuple[Losses, np.ndarray, np.ndarray]:
    """Return the terms of Mnih et al. 2016, algorithm S3, and the loss's gradients.

    loss = 1/E sum_e sum_t [ -log pi(a|s) (R - V(s)) - entropy_coef H(pi(.|s)) + value_coef (R -
    V(s))^2 ], with the advantage R - V(s) a constant for the policy's gradient. By logit j, with pi
    the softmax of the logits, the terms' derivatives are (pi_j - [j = a]) (R - V), entropy_coef
    pi_j (log pi_j + H), and 0; by the value, the last one's is -2 value_coef (R - V).

    With a huber_delta d the square is twice Huber's (1964) loss: of an error of size e above d it
    is d (2 e - d), and the derivative is that of an error of size d.

    Args:
        logits: (T, E, num_actions) float32, of T steps of E environments.
        values: (T, E) float32, V(s).
        actions: (T, E) int64, a.
        returns: (T, E) float32, the n-step returns R.
        entropy_coef: weight of the entropy.
        value_coef: weight of the squared error of the values.
        huber_delta: the largest error that is squared; 0: all are.

    Returns:
        The terms, the gradient by the logits, (T, E, num_actions), and by the values, (T, E).
    """
    num_envs = actions.shape[1]
    taken = np.arange(actions.size), actions.ravel()
    advantages = (returns - values).ravel()
    flat = logits.reshape(actions.size, -1)
    shifted = flat - flat.max(axis=-1, keepdims=True)
    log_pi = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    pi = np.exp(log_pi)
    entropy = -(pi * log_pi).sum(axis=-1)
    errors = np.clip(advantages, -huber_delta, huber_delta) if huber_delta else advantages
    terms = Losses(
        -float((log_pi[taken] * advantages).mean()),
        float((errors * (2 * advantages - errors)).mean()),
        float(entropy.mean()),
    )
    by_logits = pi * (advantages + entropy_coef * entropy)[:, None] + entropy_coef * pi * log_pi
    by_logits[taken] -= advantages
    by_values = errors * (-2 * value_coef / num_envs)
    return terms, (by_logits / num_envs).reshape(logits.shape), by_values.reshape(actions.shape)
