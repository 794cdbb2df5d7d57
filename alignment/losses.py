"""The losses of alignment as pure functions of tensors, in plain torch; docs/alignment.md derives each from the last.

Shapes: B answers of up to T tokens, V ids. A `mask` (B, T) is 1 (or True) at the tokens of the answer, among them the
one that ends it, and 0 at prompt and padding. Log-probabilities are natural logarithms of what the *sampling*
distribution gives, so at the sampling temperature. What is fixed during a gradient step (rewards, advantages, old and
reference log-probabilities) must carry no gradient.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Normalization = Literal["grpo", "dr_grpo", "dapo"]
Estimator = Literal["k1", "k2", "k3"]


def token_log_probabilities(logits: Tensor, ids: Tensor, temperature: float = 1.0) -> Tensor:
    """Return log P(id) (B, T) for logits (B, T, V) of the same positions, in float32, or in float64 if the logits are.

    >>> token_log_probabilities(torch.zeros(1, 1, 4), torch.tensor([[2]])).exp().tolist()
    [[0.25]]
    """
    logits = _wide(logits) if temperature == 1 else _wide(logits) / temperature
    chosen = logits.gather(-1, ids[..., None])[..., 0]  # (B, T, V) -> (B, T)
    return chosen - logits.logsumexp(-1)


def entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the entropy (B, T) in nats of the distributions of logits (B, T, V).

    >>> round(entropy(torch.zeros(1, 1, 4)).item(), 4)
    1.3863
    """
    logs = (_wide(logits) / temperature).log_softmax(-1)
    return -(logs.exp() * logs).nan_to_num().sum(-1)  # an id of probability 0 adds nothing


def _wide(logits: Tensor) -> Tensor:
    """Return logits in at least float32: sums over a vocabulary lose too much in 16 bits."""
    return logits if logits.dtype == torch.float64 else logits.float()


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of x (…) where the mask (…) is 1; 0 if it is 1 nowhere.

    >>> masked_mean(torch.tensor([1.0, 3.0, 9.0]), torch.tensor([1, 1, 0])).item()
    2.0
    """
    return (x * mask).sum() / mask.sum().clamp(min=1)


# Preferences


def dpo(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return the losses (B,) of direct preference optimization (Rafailov et al. 2023, equation 7).

    All four are log-probabilities (B,) of whole answers. Label smoothing is the share of preferences that are taken to
    be the wrong way round (Mitchell 2023, conservative DPO).

    >>> zero = torch.zeros(1)
    >>> round(dpo(zero, zero, zero, zero, beta=0.1).item(), 4)  # log 2: no preference yet
    0.6931
    """
    margin = beta * ((chosen - reference_chosen) - (rejected - reference_rejected))
    return -(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)


def ipo(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float,
) -> Tensor:
    """Return the losses (B,) of identity preference optimization (Azar et al. 2023, equation 17, whose τ is beta).

    All four are *means* of log-probabilities over the tokens of an answer, as the authors' own results have it: sums
    would make the target depend on the length. The margin is drawn to 1 / (2 beta) and not to infinity.
    """
    margin = (chosen - reference_chosen) - (rejected - reference_rejected)
    return (margin - 1 / (2 * beta)) ** 2


def bradley_terry(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Return -log P(chosen is preferred) (B,) for rewards (B,): Bradley and Terry 1952; Ouyang et al. 2022, eq. 1."""
    return -F.logsigmoid(chosen - rejected)


# Policy gradients


def group_advantages(rewards: Tensor, group: int, *, scale: bool = True, eps: float = 1e-4) -> Tensor:
    """Return rewards (N,) minus the mean of their group, divided by its standard deviation if `scale` is True.

    The answers to one prompt are `group` consecutive rewards, at least 2. Divided: GRPO (Shao et al. 2024), by the
    unbiased deviation + eps; not divided: Dr. GRPO (Liu et al. 2025), as dividing favours prompts that are nearly
    solved or nearly hopeless.

    >>> group_advantages(torch.tensor([1.0, 0.0, 5.0, 5.0]), 2, scale=False).tolist()
    [0.5, -0.5, 0.0, 0.0]
    """
    if group < 2:
        raise ValueError(
            f"a group of {group} answers has no mean to compare with: sample at least 2 a prompt"
        )
    groups = rewards.view(-1, group)  # (N,) -> (N / group, group)
    advantages = groups - groups.mean(1, keepdim=True)
    if scale:
        advantages = advantages / (groups.std(1, keepdim=True) + eps)
    return advantages.view(-1)


def clipped(new: Tensor, old: Tensor, advantages: Tensor, low: float, high: float) -> Tensor:
    """Return the losses (B, T) of PPO's clipped ratio (Schulman et al. 2017, equation 7).

    `new` and `old` are log-probabilities (B, T), advantages (B, T) or (B, 1). The ratio may use a range of
    1 - low … 1 + high, with high above low so that rare tokens can grow (DAPO, Yu et al. 2025, "clip higher").
    """
    ratio = (new - old).exp()
    return -torch.min(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)


def normalize(losses: Tensor, mask: Tensor, how: Normalization, longest: int) -> Tensor:
    """Return one loss for losses (B, T) at the tokens of the mask (B, T).

    grpo      the mean over answers of the mean over each one's tokens: a token of a long answer counts less
    dr_grpo   the sum divided by B times `longest`, the most tokens of an answer: every token counts the same, always
    dapo      the mean over all tokens: every token counts the same within the batch

    >>> losses, mask = torch.tensor([[1.0, 1.0], [4.0, 0.0]]), torch.tensor([[1, 1], [1, 0]])
    >>> [normalize(losses, mask, how, longest=3).item() for how in ("grpo", "dr_grpo", "dapo")]
    [2.5, 1.0, 2.0]
    """
    if how == "dapo":
        return masked_mean(losses, mask)
    sums = (losses * mask).sum(1)  # (B, T) -> (B,)
    return (sums / (longest if how == "dr_grpo" else mask.sum(1).clamp(min=1))).mean()


def normalization_weight(mask: Tensor, how: Normalization) -> float:
    """Return how much `normalize` of these rows counts among several parts of a batch: their tokens, or their rows."""
    return mask.sum().item() if how == "dapo" else float(len(mask))


def kl(new: Tensor, reference: Tensor, estimator: Estimator = "k3") -> Tensor:
    """Return estimates (…) of KL(new ‖ reference) from the log-probabilities (…) of tokens sampled from `new`.

    Schulman 2020, "Approximating KL divergence". k1 is unbiased; k2 has less variance and a bias; k3, which is never
    negative, is what GRPO adds to its loss. The gradient of k2 is that of the KL divergence; that of k1 is 0 on
    average, so it belongs into a reward.
    """
    difference = reference - new
    if estimator == "k1":
        return -difference
    return difference.square() / 2 if estimator == "k2" else difference.expm1() - difference


# A critic


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Return generalized advantages and returns (B, T) (Schulman et al. 2015), both 0 outside the mask.

    rewards, values (B, T): what is earned by a token, and what the critic expected before it. The value after the last
    token of an answer is 0, whatever the critic says of padding.

    >>> reward, value, mask = torch.tensor([[0.0, 1.0, 7.0]]), torch.full((1, 3), 0.5), torch.tensor([[1, 1, 0]])
    >>> [x.tolist() for x in gae(reward, value, mask, gamma=1.0, lam=1.0)]
    [[[0.5, 0.5, 0.0]], [[1.0, 1.0, 0.0]]]
    """
    mask = mask.to(values.dtype)
    rewards, values = rewards * mask, values * mask
    following = torch.zeros_like(values[:, 0])
    value_after = torch.zeros_like(following)
    backwards = []
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * value_after - values[:, t]
        following = (delta + gamma * lam * following) * mask[:, t]
        value_after = values[:, t]
        backwards.append(following)
    advantages = torch.stack(backwards[::-1], dim=1)  # T times (B,) -> (B, T)
    return advantages, advantages + values


def whiten(x: Tensor, mask: Tensor) -> Tensor:
    """Return x (B, T) with mean 0 and variance 1 over the tokens of the mask, and 0 elsewhere."""
    centred = (x - masked_mean(x, mask)) * mask
    variance = centred.square().sum() / (mask.sum() - 1).clamp(min=1)  # unbiased
    return centred * torch.rsqrt(variance + 1e-8)


def clipped_value(values: Tensor, old: Tensor, returns: Tensor, clip: float) -> Tensor:
    """Return the critic's losses (B, T): half the larger of the squared errors with and without clipping.

    The new value may differ from the `old` one of the rollout by `clip` (PPO's code, Huang et al. 2022, detail 9).
    """
    bounded = old + (values - old).clamp(-clip, clip)
    return torch.maximum((values - returns).square(), (bounded - returns).square()) / 2
