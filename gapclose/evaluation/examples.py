"""Examples for a report: items that differ, drawn by a seeded rule.

Shapes: N items.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Hashable, Sequence

import numpy as np

EXAMPLES = 9
"""examples of one kind"""
SAME_QUESTION = 3
"""examples of one kind that may have the same question"""


def varied(
    candidates: np.ndarray,
    *,
    group: Sequence[Hashable],
    question: Sequence[Hashable],
    clip: Sequence[Hashable],
    seed: int | Sequence[int],
    count: int = EXAMPLES,
    same: int = SAME_QUESTION,
) -> list[int]:
    """Draw up to ``count`` of the candidates, in the order drawn.

    The candidates are put in an order by chance. The groups then take turns: each gives its next
    candidate whose question was drawn fewer than ``same`` times and whose clip was not drawn yet.
    How certain an answer or a reading is plays no part. Candidates of a clip that was drawn follow
    only where the others do not fill the list.

    Args:
        candidates: indices into the N items.
        group: (N,) group of every item, e.g. its cell of modality and concept.
        question: (N,) question of every item. clip: (N,) its clip.
        seed: of the order.
    """
    order = np.random.default_rng(seed).permutation(np.asarray(candidates, dtype=int)).tolist()
    drawn, asked, clips = list[int](), Counter[Hashable](), set[Hashable]()
    for again in (False, True):
        queues = {name: deque(n for n in order if group[n] == name) for name in sorted({group[n] for n in order}, key=str)}
        while len(drawn) < count and any(queues.values()):
            for queue in queues.values():
                while queue and len(drawn) < count:
                    n = queue.popleft()
                    if n in drawn or asked[question[n]] >= same or (clip[n] in clips and not again):
                        continue
                    drawn.append(n)
                    asked[question[n]] += 1
                    clips.add(clip[n])
                    break
    return drawn
