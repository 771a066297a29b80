"""Training losses as plain functions of tensors. They return sums; the trainer alone normalises.

Shapes: P answer positions, V vocabulary, G gathered (position, token) pairs, K kept tokens.
"""

from __future__ import annotations

import torch


def answer_nll(logp: torch.Tensor, place: torch.Tensor, token: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Compute - sum_g weight_g log p(token_g).

    Probabilities are over the full vocabulary, so that generation changes and not only the ranking
    of options. For a target t(o|x), every token of option o has the weight t(o|x). The result is
    then - sum_o t(o|x) log p(o's tokens | x).

    Args:
        logp: (P, V) log-probabilities. place: (G,) row of ``logp``. token: (G,) vocabulary id.
        weight: (G,); pairs of weight 0 contribute nothing, even where ``logp`` is -inf.
    """
    return -torch.where(weight > 0, weight * logp[place, token], 0.0).sum()


def topk_kl(logp: torch.Tensor, base_logps: torch.Tensor, base_tokens: torch.Tensor) -> torch.Tensor:
    """Compute the sum over positions of KL(base || adapted) on {each kept token, all other tokens}.

    With all tokens kept this is the exact KL. With the K most probable ones it is a lower bound
    (data processing inequality), which misses only differences within the tail.

    Args:
        logp: (P, V) of the adapted model. base_logps: (P, K) of the base model. base_tokens: (P, K)
            vocabulary ids.

    Returns:
        The sum; inf if a token has probability 0 under the adapted model but not under the base
            model. Never NaN if all log-probabilities are finite or -inf.
    """
    kept = logp.gather(1, base_tokens)
    base = base_logps.exp()
    said = base > 0  # 0 log 0 = 0: tokens of base probability 0 cost nothing
    inside = (base * torch.where(said, base_logps - kept, 0.0)).sum(1)
    if base_tokens.shape[1] == logp.shape[1]:
        return inside.sum()
    rest = (1 - base.sum(1)).clamp_min(1e-12)
    others = logp.scatter(1, base_tokens, -torch.inf)
    none = others.isneginf().all(1) & (rest < 1e-6)  # no other token in either model
    log_q_rest = torch.where(none[:, None], 0.0, others).logsumexp(1)
    return (inside + torch.where(none, 0.0, rest * (rest.log() - log_q_rest))).sum()
