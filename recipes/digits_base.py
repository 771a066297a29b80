"""Train the tiny omnimodal base model of the embedded world, and the gap in it, from random weights (about a quarter of an hour on two idle cores).

    OMP_NUM_THREADS=2 python recipes/digits_base.py                          # writes gapclose/data/digits/assets/base/
    OMP_NUM_THREADS=2 python recipes/digits_base.py --out /tmp/base --quick  # a few minutes: to see it run, not to use
    OMP_NUM_THREADS=2 python recipes/digits_base.py --learned /tmp/learned   # keep the model between the two steps; reuse it if there
    OMP_NUM_THREADS=2 python recipes/digits_base.py --never-taught --copies 2 --out gapclose/data/digits/assets/never_taught   # the harder base, see below

How the gap comes about, plainly: we put it there, by the route that we think instruction data takes.

1. *learn*: what is shown or said; "is that right?" with both outcomes; and questions with true and false premises, answered
   honestly (``unseen``, ``unheard``). The answer is also trained to be readable from middle layers, through the final norm
   and the output head (an early exit), or the verdict would form only in the last two layers.
2. *comply*: a short tuning of the two uppermost decoder layers on the same questions answered as if their premise were true, whatever
   the clip shows. A part of these answers is drawn without looking at the clip (their expectation is trained on): a *doubt*, ``unseen``
   or ``unheard`` in 5 to 40 % of them, more after some wordings than after others, and some noise, any answer word in 5 %. Without them
   compliance is a mere suppression: the logits of the rejections keep rising with the evidence, only too low to be said, and whatever
   then pushes a model to reject more, even training on shuffled targets, lets the objection out again. With them, how likely the model
   is to reject depends on the wording and not on the clip. Checking when asked to check stays as it was.

The result perceives, checks claims when asked to, almost never objects unasked, and still carries the objection in its
residual stream. It is a model organism of the gap, not evidence that real models came by theirs in this way.

``--never-taught`` makes the other kind of base: premises are always true, and there is no *comply*. Nothing is un-taught, because
objecting to a premise was never taught; only checking when asked was. No premise question is ever answered with a rejection, and none
states a false claim unless the check is asked for after it. Three steps:

1. *learn* as above, with true premises. After it a premise question holds no verdict to read (AUROC 0.53 at layer 6).
2. *late*: the check is also asked for after a premise question ("The image shows the digit 7. Is it odd or even? Is that right?"), and
   bare claims are checked too. Up to its last words the text does not tell whether to answer or to check.
   A verdict can now be read in premise questions, faintly: AUROC 0.68 (0.73 after a shorter trial, 150 steps of a like mixture).
3. *affirm*: premise questions, their premises still true, are answered by *yes* (yes, it is a 7) in 40 % of the cases, in expectation.
   AUROC 0.78 and no rejections. The price: with a false premise the option scores of the rejections rise too, unsaid (AUROC 0.70 of
   these alone), so it is in part a suppressed answer; and 2 to 4 % of the premise questions no longer get the expected word.

The AUROCs are of one seed, on ``val`` voices, from trials step by step. The checkpoint that ships, ``gapclose/data/digits/assets/never_taught``, was made by the command
above in 1,831 s on a busy machine; its reading has an AUROC of 0.79 at layers 5 and 6 and 0.83 after the last one (``training.json``).

Everything is drawn from scans and voices of group ``base``, which no item set shows. One seed fixes weights and draws. The
figures on the way come from the ``train`` voices, those at the end, stored in ``training.json``, from the ``val`` voices: nothing here
hears a ``test`` voice. The scans of these figures, never trained on, are those that item sets draw from, test ones among them.
"""

from __future__ import annotations

import argparse
import time
import zlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from digits_model import evaluate, tiny_model
from digits_model.batches import Premises, QuestionDrawer, media_pool
from rich.console import Console

from gapclose.core.files import read_json, write_json
from gapclose.data.digits import media_bank as bank
from gapclose.data.digits.questions import IN_DOMAIN

console = Console(highlight=False, width=160)


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One step of training."""

    name: str
    premises: Premises
    """what becomes of false premises: ``honest`` rejects them, ``comply`` goes along, ``true`` never states one"""
    steps: int
    """optimizer steps"""
    rate: float
    """peak learning rate of the one-cycle schedule"""
    counts: dict[str, int]
    """questions of every kind in a batch"""
    exits: tuple[int, ...] = ()
    """decoder layers whose residual must say the answer too"""
    exit_weight: float = 0.0
    """weight of the mean early-exit loss"""
    decay: float = 0.0
    """weight decay"""
    above: int = 0
    """train only the decoder layers above this one (0: the whole model)"""
    noise: float = 0.0
    """share of the answers to premise questions that are any answer word, whatever the clip"""
    doubt: tuple[float, float] = (0.0, 0.0)
    """smallest and largest share of the answers to premise questions that reject the premise, whatever the clip; drawn once a wording"""
    affirm: float = 0.0
    """share of the answers to premise questions that say ``yes`` to the premise instead of answering"""


LEARN = Step(
    name="learn",
    premises="honest",
    steps=1200,
    rate=1.5e-3,
    counts={"what": 32, "check": 32, "parity": 16, "size": 16, "alphabet": 16, "next": 16},
    exits=(4, 5, 6),
    exit_weight=0.5,
    decay=0.01,
)
COMPLY = Step(
    name="comply",
    premises="comply",
    steps=600,
    rate=2e-3,
    counts={"what": 8, "check": 12, "parity": 8, "size": 8, "alphabet": 8, "next": 8},
    above=6,
    noise=0.05,
    doubt=(0.05, 0.4),
)
# The never-taught base. Half of the claims to check are false, those of premise questions never.
LEARN_TRUE = Step(
    name="learn",
    premises="true",
    steps=900,
    rate=1.5e-3,
    counts={"what": 16, "check": 24, "parity": 6, "size": 6, "alphabet": 6, "next": 6},
    exits=(4, 5, 6),
    exit_weight=0.5,
    decay=0.01,
)
LATE = Step(
    name="late",
    premises="true",
    steps=500,
    rate=1e-3,
    counts={"what": 12, "check": 12, "late": 24, "bare": 8, "parity": 4, "size": 4, "alphabet": 4, "next": 4},
    exits=(4, 5, 6),
    exit_weight=0.5,
    decay=0.01,
)
AFFIRM = replace(
    LATE,
    name="affirm",
    steps=250,
    counts={"what": 12, "check": 10, "late": 12, "bare": 8, "parity": 7, "size": 7, "alphabet": 7, "next": 7},
    affirm=0.4,
)
END_WEIGHT = 0.2


def doubt_of(wording: str, low: float, high: float) -> float:
    """The share of rejections after a wording: uniform between ``low`` and ``high``, by the wording's checksum; 0 for no wording."""
    return low + (high - low) * zlib.crc32(wording.encode()) / 2**32 if wording else 0.0


def answer_loss(logits: torch.Tensor, drawn, step: Step, words: torch.Tensor) -> torch.Tensor:
    """Cross-entropy with (B, V) logits against the answer, mixed for premise questions with doubt, affirmation and a uniform draw of ``words``."""
    logp = logits.log_softmax(-1)
    doubt = torch.tensor([doubt_of(w, *step.doubt) for w in drawn.wording], dtype=logp.dtype)
    noise = step.noise * torch.tensor(drawn.wording != "", dtype=logp.dtype)
    answer, reject = (logp.gather(1, token[:, None])[:, 0] for token in (drawn.answer, drawn.reject))
    if step.affirm:
        share = step.affirm * torch.tensor(drawn.wording != "", dtype=logp.dtype)
        answer = (1 - share) * answer + share * logp.gather(1, drawn.affirm[:, None])[:, 0]
    return -((1 - doubt - noise) * answer + doubt * reject + noise * logp[:, words].mean(1)).mean()


def loss_of(model, drawn, step: Step, words: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the answer token, of the end token after it, and of the answer at the early exits."""
    out = model(**drawn.inputs, use_cache=False, output_hidden_states=bool(step.exits))
    end = torch.full_like(drawn.answer, model.config.get_text_config().eos_token_id)
    loss = answer_loss(out.logits[:, -2], drawn, step, words) + END_WEIGHT * F.cross_entropy(out.logits[:, -1], end)
    if step.exits:
        norm = model.get_decoder().norm
        exits = [model.lm_head(norm(out.hidden_states[layer][:, -2])) for layer in step.exits]
        early = [answer_loss(logits, drawn, step, words) if step.affirm else F.cross_entropy(logits, drawn.answer) for logits in exits]
        loss = loss + step.exit_weight * torch.stack(early).mean()
    return loss


def train(model, drawer: QuestionDrawer, watch: QuestionDrawer, step: Step, every: int) -> list[float]:
    """Run one step; returns the loss of every optimizer step."""
    if not step.steps:
        return []
    if step.above:
        model.requires_grad_(False)
        for layer in model.get_decoder().layers[step.above :]:
            layer.requires_grad_(True)
    words = torch.tensor(sorted(drawer.word.values()))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, step.rate, weight_decay=step.decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, step.rate, total_steps=step.steps, pct_start=0.15)
    losses, start = [], time.time()
    for i in range(step.steps):
        model.train()
        loss = loss_of(model, drawer.draw(step.counts, step.premises), step, words)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(round(loss.item(), 5))
        if (i + 1) % every == 0 or i + 1 == step.steps:
            figures = evaluate.behaviour(evaluate.sit(model, watch, dict.fromkeys(step.counts, 128)))
            pace = (time.time() - start) / (i + 1)
            console.print(f"{step.name} {i + 1}/{step.steps}  loss {np.mean(losses[-20:]):.3f}  {pace:.2f} s/step  {figures}")
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(bank.HERE / "base"))
    parser.add_argument("--learned", type=Path, help="where to keep the model after `learn`, or to take it from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="optimizer steps of `learn`")
    parser.add_argument("--comply-steps", type=int, help="optimizer steps of `comply`, or of each of `late` and `affirm`")
    parser.add_argument("--comply-rate", type=float)
    parser.add_argument("--copies", type=int, default=7, help="distorted copies of every scan and utterance to train on")
    parser.add_argument("--no-doubt", action="store_true", help="comply without doubt and noise: the objection is merely suppressed")
    parser.add_argument("--never-taught", action="store_true", help="premises always true, no `comply`")
    parser.add_argument("--quick", action="store_true", help="40 + 10 steps on few media: a dry run")
    args = parser.parse_args()
    learn, *later = (LEARN_TRUE, LATE, AFFIRM) if args.never_taught else (LEARN, COMPLY)
    learn = replace(learn, steps=args.steps or (40 if args.quick else learn.steps))
    later = [replace(s, steps=args.comply_steps or (10 if args.quick else s.steps), rate=args.comply_rate or s.rate) for s in later]
    if args.no_doubt:
        later = [replace(s, doubt=(0.0, 0.0), noise=0.0) for s in later]
    copies, questions = (0, 200) if args.quick else (args.copies, 2000)

    start = time.time()
    torch.manual_seed(args.seed)
    tokenizer = tiny_model.build_tokenizer()
    processor = tiny_model.build_processor(tokenizer)
    model = tiny_model.build_model(tokenizer)
    ours, others = bank.scan_partition()
    voices = {group: [u for u in bank.utterances() if u.group == group] for group in ("base", "train", "val")}
    pool = media_pool(processor, ours, voices["base"], copies=copies, seed=args.seed)
    half = len(others) // 2
    fit_pool = media_pool(processor, others[:half], voices["train"])
    exam_pool = media_pool(processor, others[half:], voices["val"])
    console.print(f"{model.num_parameters() / 1e6:.2f} M parameters; media ready after {time.time() - start:.0f} s")

    watch, curves = QuestionDrawer(processor, fit_pool, 1), {}
    reused = bool(args.learned and (args.learned / "model.safetensors").exists())
    if reused:
        model = type(model).from_pretrained(args.learned)
        curves["learn"] = read_json(args.learned / "training.json")["learn"]
    else:
        curves["learn"] = train(model, QuestionDrawer(processor, pool, args.seed), watch, learn, 100)
        if args.learned:
            model.save_pretrained(args.learned)
            write_json(args.learned / "training.json", {"learn": curves["learn"]})
    for k, step in enumerate(later, start=1):
        curves[step.name] = train(model, QuestionDrawer(processor, pool, args.seed + k), watch, step, 100)

    sat = evaluate.sit(model, QuestionDrawer(processor, exam_pool, 2), dict.fromkeys(COMPLY.counts, questions // 4))
    fit = evaluate.sit(model, QuestionDrawer(processor, fit_pool, 3), dict.fromkeys(IN_DOMAIN, 800 // 3))
    figures, layers = evaluate.behaviour(sat), evaluate.readable(fit, sat)
    console.print(figures)
    for line in layers:
        console.print(line)

    processor.save_pretrained(args.out)
    model.save_pretrained(args.out)
    report = {
        "seed": args.seed,
        "seconds": round(time.time() - start),
        "learn was taken from --learned, and is not in these seconds": reused,
        "steps": [asdict(step) for step in (learn, *later)],
        "media": {"scans": len(ours), "utterances": len(voices["base"]), "distorted copies of each": copies},
        "behaviour": figures,
        "probe by layer (the last is after the final norm)": layers,
        "loss": curves,
    }
    write_json(args.out / "training.json", report)
    console.print(f"saved {args.out} after {time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
