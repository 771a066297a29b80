# pyright: reportArgumentType=false
"""What a base model of the embedded world can do, and what its residual stream holds. Used by the recipe and its tests.

N questions, L decoder layers, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from gapclose.data.digits.questions import IN_DOMAIN, KINDS, TRANSFER

if TYPE_CHECKING:
    from digits_model.batches import QuestionDrawer


@torch.no_grad()
def sit(model, drawer: QuestionDrawer, counts: Mapping[str, int], *, batch: int = 128) -> dict[str, np.ndarray]:
    """Ask the model. ``counts`` rows of every kind, premises false in half of them (never for ``what``).

    Returns:
        ``residuals`` (N, L, D) at the answer position (layer L is after the final norm, as transformers returns it),
        ``said`` (N,) token ids of the first answer token, ``stops`` (N,) whether the end token follows the right answer,
        and ``answer``, ``reject``, ``comply``, ``kind``, ``modality``, ``false`` of :class:`batches.Drawn`.
    """
    model.eval()
    end = model.config.get_text_config().eos_token_id
    parts: list[dict[str, np.ndarray]] = []
    for kind, count in counts.items():
        for start in range(0, count, batch):
            drawn = drawer.draw({kind: min(batch, count - start)})
            out = model(**drawn.inputs, use_cache=False, output_hidden_states=True)
            parts.append(
                {
                    "residuals": torch.stack([h[:, -2] for h in out.hidden_states[1:]], 1).numpy(),
                    "said": out.logits[:, -2].argmax(-1).numpy(),
                    "stops": (out.logits[:, -1].argmax(-1) == end).numpy(),
                    "answer": drawn.answer.numpy(),
                    "reject": drawn.reject.numpy(),
                    "comply": drawn.comply.numpy(),
                    "kind": drawn.kind,
                    "modality": drawn.modality,
                    "false": drawn.false,
                }
            )
    return {key: np.concatenate([p[key] for p in parts]) for key in parts[0]}


def behaviour(sat: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Shares of answers: perception and checking by modality, and what becomes of true and false premises."""
    right, found = sat["said"] == sat["answer"], {}
    for name, kind in (("shown", "what"), ("said", "what"), ("check", "check")):
        rows = sat["kind"] == kind
        if kind == "what":
            rows &= sat["modality"] == ("vision" if name == "shown" else "audio")
        found[name] = right[rows].mean()
    gap = np.isin(sat["kind"], list(KINDS))
    for modality in ("vision", "audio"):
        rows = gap & (sat["modality"] == modality)
        rejected, along = sat["said"] == sat["reject"], sat["said"] == sat["comply"]
        found[f"standard {modality}"] = along[rows & ~sat["false"]].mean()
        found[f"rejects {modality}"] = rejected[rows & sat["false"]].mean()
        found[f"goes along {modality}"] = along[rows & sat["false"]].mean()
    found["stops"] = sat["stops"].mean()
    return {name: round(float(value), 4) for name, value in found.items()}


def readable(fit: Mapping[str, np.ndarray], test: Mapping[str, np.ndarray], layers: Sequence[int] | None = None) -> list[dict[str, float]]:
    """A three-class linear probe per layer (1 to L, all by default), fitted on one sitting and judged on another.

    Concepts are standard, false vision, false audio. One dict a layer: ``auroc`` (false against standard),
    ``balanced`` (mean accuracy over modality x premise) in domain, and both again for the held-out kind.
    """
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def concept(sat):
        return np.where(sat["false"], np.where(sat["modality"] == "vision", 1, 2), 0)

    rows, table = np.isin(fit["kind"], IN_DOMAIN), []
    for layer in layers or range(1, fit["residuals"].shape[1] + 1):
        search = LogisticRegressionCV(
            Cs=[1e-3, 1e-2, 1e-1, 1],
            cv=4,
            max_iter=2000,
            scoring="neg_log_loss",
            l1_ratios=(0,),
            use_legacy_attributes=False,
        )
        probe = make_pipeline(StandardScaler(), search).fit(fit["residuals"][rows, layer - 1], concept(fit)[rows])
        line: dict[str, float] = {"layer": layer}
        for suffix, kinds in (("", IN_DOMAIN), (" transfer", (TRANSFER,))):
            seen = np.isin(test["kind"], kinds)
            posterior, truth = probe.predict_proba(test["residuals"][seen, layer - 1]), concept(test)[seen]
            right = posterior.argmax(-1) == truth
            cells = [
                right[(test["false"][seen] == f) & (test["modality"][seen] == m)].mean() for f in (False, True) for m in ("vision", "audio")
            ]
            line["auroc" + suffix] = round(float(roc_auc_score(truth > 0, 1 - posterior[:, 0])), 4)
            line["balanced" + suffix] = round(float(np.mean(cells)), 4)
        table.append(line)
    return table
