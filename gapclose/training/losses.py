"""The training loss as plain functions of tensors: sums over items, so that the trainer alone decides what they are divided by.

Shapes: P answer positions, V vocabulary, G gathered (position, token) pairs, K kept tokens.
"""

from __future__ import annotations

import torch


def answer_nll(logp: torch.Tensor, place: torch.Tensor, token: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """- sum_g weight_g log p(token_g), in the full vocabulary, so that what is generated moves and not only the ranking of options.

    For a target t(o|x), every token of option o carries the weight t(o|x), which gives - sum_o t(o|x) log p(o's tokens | x).

    Args:
        logp: (P, V) log-probabilities; what has no weight counts for nothing, -inf too. place: (G,) row of ``logp``. token: (G,) vocabulary
            id. weight: (G,).
    """
    return -torch.where(weight > 0, weight * logp[place, token], 0.0).sum()


def topk_kl(logp: torch.Tensor, base_logps: torch.Tensor, base_tokens: torch.Tensor) -> torch.Tensor:
    """Sum over positions of KL(base || adapted) on the partition {each kept token, all the rest}.

    With every token kept this is the exact KL; with the K most probable ones it is a lower bound (data processing inequality) that
    misses only what happens within the tail.

    Args:
        logp: (P, V) of the adapted model. base_logps: (P, K) of the base model. base_tokens: (P, K) vocabulary ids.

    Returns:
        inf where the adapted model gives no probability to what the base model says; never nan of finite or -inf log-probabilities.
    """
    kept = logp.gather(1, base_tokens)
    base = base_logps.exp()
    said = base > 0  # 0 log 0 = 0: what the base model never says costs nothing, whatever the adapted one makes of it
    inside = (base * torch.where(said, base_logps - kept, 0.0)).sum(1)
    if base_tokens.shape[1] == logp.shape[1]:
        return inside.sum()
    rest = (1 - base.sum(1)).clamp_min(1e-12)
    others = logp.scatter(1, base_tokens, -torch.inf)
    none = others.isneginf().all(1) & (rest < 1e-6)  # nothing else is possible, in either model
    log_q_rest = torch.where(none[:, None], 0.0, others).logsumexp(1)
    return (inside + torch.where(none, 0.0, rest * (rest.log() - log_q_rest))).sum()
