"""Online codelength: bits to send the concepts to a receiver who has the residuals.

Source: Voita & Titov 2020, arXiv 2003.12298. A probe that needs few examples gives few bits.
Accuracy alone does not distinguish this from memorisation.

Shapes: M items, D width, C concepts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import softmax

from gapclose.core.logging import progress
from gapclose.core.results import Result
from gapclose.evaluation.controls.random_labels import shuffled
from gapclose.probes.cross_validation import fit_temperature
from gapclose.probes.linear import FrozenProbe, fit_linear, linear_logits

SHARES = (0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
"""block ends, as shares of the clips"""


def clip_blocks(clips: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Return the items of every block, by complete clips in random order; the first block has at
    least one clip."""
    names, index = np.unique(clips, return_inverse=True)
    place = rng.permutation(len(names))[index]
    ends = sorted({max(1, round(share * len(names))) for share in SHARES})
    return [np.flatnonzero((place >= start) & (place < end)) for start, end in zip([0, *ends], ends, strict=False)]


def online_bits(residual: np.ndarray, y: np.ndarray, blocks: Sequence[np.ndarray], concepts: int, family: str, strength: float) -> float:
    """Compute the bits to send ``y`` (M,) by blocks, each with a probe fitted on earlier blocks.

    An item costs log2 C bits in the first block, and until the items sent include two concepts and
    outnumber their concepts. A probe's temperature is the best one for the earlier blocks (1 at
    first). After n items, a share 1 / (n + 1) of the probability is spread evenly, because an
    unseen concept would otherwise cost infinitely many bits.

    Args:
        residual: (M, D). blocks: items of every block.
    """
    bits, sent = len(blocks[0]) * np.log2(concepts), blocks[0]
    earlier: list[tuple[np.ndarray, np.ndarray]] = []  # logits and concepts of the blocks sent by a probe that knew all concepts
    for block in blocks[1:]:
        seen = np.unique(y[sent])
        if len(seen) < 2 or len(sent) <= len(seen):  # no discriminant is fitted to one item a concept
            bits += len(block) * np.log2(concepts)
        else:
            logits = np.full((len(block), concepts), -np.inf)
            logits[:, seen] = linear_logits(residual[block], fit_linear(residual[sent], y[sent], family, strength))
            temperature = fit_temperature(*(np.concatenate(part) for part in zip(*earlier, strict=True))) if earlier else 1.0
            even = 1 / (len(sent) + 1)
            probability = (1 - even) * softmax(logits / temperature, axis=1) + even / concepts
            bits -= np.log2(probability[np.arange(len(block)), y[block]]).sum()
            if len(seen) == concepts:
                earlier.append((logits, y[block]))
        sent = np.concatenate([sent, block])
    return float(bits)


@dataclass(frozen=True, kw_only=True, slots=True)
class Codelength(Result):
    """Bits that the concepts take, given the residuals."""

    online_bits: float
    uniform_bits: float
    """without residuals"""
    compression: float
    """uniform over online bits"""
    control_compression: float
    """the same for shuffled concepts"""


def codelength(
    residual: np.ndarray,
    y: np.ndarray,
    modality: np.ndarray,
    clips: np.ndarray,
    probe: FrozenProbe,
    *,
    draws: int,
    rng: np.random.Generator,
) -> Codelength:
    """Compute the online codelength of the concepts given the residuals (M, D), in bits.

    The probes have the chosen family and strength. ``compression`` is uniform over online bits;
    ``control_compression`` is the same for concepts shuffled within their modality (mean bits of
    ``draws``). The control also compresses if residuals reveal the modality and the modality rules
    out concepts, so only the excess over it counts.
    """
    concepts = len(probe.concepts)
    blocks = clip_blocks(clips, rng)
    uniform = float(len(y) * np.log2(concepts))
    online = online_bits(residual, y, blocks, concepts, probe.family, probe.strength)
    mixed = [
        online_bits(residual, shuffled(y, modality, rng), blocks, concepts, probe.family, probe.strength)
        for _ in progress(range(draws), draws, "codelength of shuffled labels")
    ]
    return Codelength(
        online_bits=online,
        uniform_bits=uniform,
        compression=uniform / online,
        control_compression=uniform / float(np.mean(mixed)),
    )
