"""The next step after every state and every verdict, in one sentence each.

Console, page and documents use :data:`NEXT_STEPS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_ACTING = "List the options in the prompt, ask for one of them, or ask questions that this model can answer; then measure again."
_MORE = "Ask harder questions, or label more test clips if the interval of the gap is wide."

FAINT = 0.85
"""AUROC of a reading below which one training above the probe is not the first thing to try. Tried were
readings of 0.66 to 0.83, where it closed little, and of 0.90 and more; nothing between"""
FAINT_SETTINGS: Mapping[str, Any] = {
    "objective": "consistency+gold",
    "train.gold": 1.0,
    "lora.layers": "all",
    "targets.first": "labels",
    "targets.rounds": 4,
    "targets.patience": 2,
    "targets.sharpen": 2.0,
}
"""dotted key -> value: what ``recipe: auto`` sets for a faint reading. Labels of ``fit`` train all
layers first; the model so trained is read again, and teaches the unlabelled items in later rounds"""
FAINT_STEP = (
    "The reading is faint (AUROC below 0.85): run `gapclose close` with `--recipe auto`, labels first and then rounds on all layers."
)
"""after a base model with such a reading"""

OTHER_TYPES_STEP = (
    "Do not use the trained model on question types that it was not trained on: it harms them. Train on more types, and measure again."
)
"""before the step of a state, where the standard accuracy of held-out question types fell beyond its budget"""

NEXT_STEPS: Mapping[str, Mapping[str, str]] = {
    "measured": {
        "open": "Run `gapclose close` with this configuration to train the answers towards the reading.",
        "no gap": f"There is no gap to close on these items. {_MORE}",
        "not judgeable": _ACTING,
    },
    "trained": {
        "closed": "Use the adapter in `adapter/`; before you publish the figure, repeat the run with two other values of `seed`.",
        "open": "Train with more `train.epochs` or a larger `lora.r`, in another `run_dir`; after several tries, report the last on new test clips.",
        "unfinished": "Train again with more `train.epochs`, in another `run_dir`.",
        "blocked": "Raise `train.learning_rate`, `train.epochs` or `lora.r`, and train again in another `run_dir`.",
        "over-rejecting": "Lower `targets.false_alarm_budget` or raise `train.retain`, and train again in another `run_dir`.",
        "learned": "Report it as learning, not as closing; check it on a held-out question type, and repeat with two other values of `seed`.",
        "moved": "Keep the adapters above the probe (`lora.layers: after_probe`), so that they cannot move what it reads.",
        "lost": "Do not use this adapter; lower `train.learning_rate`, or keep the adapters above the probe (`lora.layers: after_probe`).",
        "collapsed": "Do not use this adapter; lower `train.learning_rate` or raise `train.retain`, and train again.",
        "no gap": f"No closure can be claimed without a gap. {_MORE}",
    },
    "verdict": {
        "real": "This reading may be trained on; report it with its interval and the controls that it beats.",
        "readable without training": "Do not call the reading knowledge; ask about content, or raise `controls.random_draws` to be surer.",
        "explained by text": "Balance the wording of true and false premises until `gapclose validate` no longer warns of the text; measure again.",
        "not readable": "Check labels and media; let the probe search other layers (`probe.layers`), or ask about something else.",
        "too few clips": "Label more clips in `fit` and `test`, or raise `controls.random_draws` where the verdict names it.",
        "not judgeable": _ACTING,
    },
}
"""``measured``: state of a base model that was only measured, ``trained``: state after training;
``verdict``: on the reading of a modality -> what to do next"""

_STOPPED = "Train less, at a lower learning rate, or with a guard that ends the training (`stop_on`)."
CALLBACK_STEPS: Mapping[str, Mapping[str, str]] = {
    "measured": {
        "open": "Report again at the end of the training, which measures test again.",
        "no gap": f"There is no gap to close on these items. {_MORE}",
        "not judgeable": _ACTING,
    },
    "trained": {
        "closed": "Use the trained model; before you publish the figure, repeat the training with two other seeds.",
        "open": "Train longer, or on more questions with a false premise; `gapclose close` trains towards the reading.",
        "unfinished": "Train longer.",
        "blocked": "Add questions with a false premise to the training data; `gapclose close` trains towards the reading.",
        "over-rejecting": "Add questions with a true premise to the training data, or train less.",
        "learned": "Report it as learning, not as closing; check it on a question type that was not trained, and repeat with two other seeds.",
        "moved": "Train only the layers above the probe, so that the training cannot move what it reads.",
        "lost": f"Do not use this model. {_STOPPED}",
        "collapsed": f"Do not use this model. {_STOPPED}",
        "no gap": f"No closure can be claimed without a gap. {_MORE}",
    },
}
"""the same for a training that :class:`gapclose.GapCallback` measured, which has settings of its own"""
