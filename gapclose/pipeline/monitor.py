"""Watch a model with the frozen probe of a run: a reading beside every answer (:class:`Monitor`)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import huggingface_hub
import torch

from gapclose.core.errors import ErrorCollector
from gapclose.core.files import near_sibling
from gapclose.data.answer_matching import AnswerMatcher
from gapclose.data.item_rows import check_messages, read_options
from gapclose.data.item_set import ItemSet
from gapclose.data.items import Item, Option
from gapclose.data.media import MediaLoader
from gapclose.evaluation.monitor_file import NAME, MonitorFile
from gapclose.export.monitor import monitor_of
from gapclose.metrics.alarms import AlarmRates
from gapclose.models.chat_template import set_variables
from gapclose.models.input_checks import refuse_long_prompts, refuse_unreadable
from gapclose.models.loading import LoadedModel, assemble
from gapclose.observe.batching import plan_batches
from gapclose.observe.forward import generate
from gapclose.observe.reading import generate_and_read, read_prompts
from gapclose.pipeline.config import parse_config
from gapclose.pipeline.items import run_items
from gapclose.pipeline.model_summary import positions
from gapclose.pipeline.monitor_results import MonitoredAnswer, Reading, readings_of
from gapclose.pipeline.monitored_model import base_fingerprint, refuse_adapters
from gapclose.pipeline.on_flag import Messages, OnFlag, check_on_flag, other_texts

Options = Sequence[Option | Mapping[str, Any]]


class Monitor:
    """A frozen probe that watches a model.

    One hook reads the residual stream during the forward of the prompt that generation needs anyway.
    Where all adapters of the run lie above the probe, one monitor serves the base model and the
    adapted one. Another model is refused at its first use. Weights that were changed in memory after
    loading a checkpoint are not noticed.
    """

    def __init__(self, file: MonitorFile) -> None:
        self.file = file
        self._known: WeakKeyDictionary[Any, tuple[Any, Any, str]] = WeakKeyDictionary()
        """model -> its processor, the processor with the variables of the chat template, and the hash"""

    @classmethod
    def from_pretrained(cls, path: str | Path, *, revision: str | None = None) -> Monitor:
        """Load a monitor from an exported adapter, a run directory, or the hub.

        Args:
            path: the folder ``adapter`` of a run, its folder ``monitor``, the run directory, or the
                name of an uploaded adapter on the hub (OWNER/NAME). For a run without an exported
                monitor, it is made from the run's files (:meth:`from_run`).
            revision: branch, tag or commit on the hub.

        Raises:
            ValueError: when there is no monitor, or one of its files is damaged.
        """
        folder = Path(path)
        if not folder.parent.exists() and str(path).count("/") == 1 and not str(path).startswith((".", "~")):
            try:
                folder = Path(huggingface_hub.snapshot_download(str(path), revision=revision, allow_patterns=[f"{NAME}/*"]))
            except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
                raise ValueError(f"{path}: no such directory, and the hub gives no such monitor ({error})") from error
        for place in (folder, folder / NAME, folder / "adapter" / NAME):
            if (place / f"{NAME}.json").is_file():
                return cls(MonitorFile.load(place))
        if (folder / "config.yaml").is_file():
            return cls.from_run(folder)
        near = "" if folder.is_dir() else near_sibling(folder)
        raise ValueError(
            f"{path}: no monitor there (no {NAME}/{NAME}.json); name an adapter that `gapclose close` or `gapclose export` wrote, or a run{near}"
        )

    @classmethod
    def from_run(cls, run_dir: str | Path, *, false_alarm_rate: float | None = None) -> Monitor:
        """Make a monitor from the files of a run, without its model.

        Args:
            run_dir: the run directory; its item set must still be there.
            false_alarm_rate: largest share of the standard items of val that may be flagged, 0..1;
                None: the run's ``export.monitor_false_alarms``.

        Raises:
            ValueError: when val was not observed, no concept is an alarm, or a file is missing.
        """
        directory = Path(run_dir)
        if not (directory / "config.yaml").is_file():
            raise ValueError(f"{directory}: no run there (no config.yaml){'' if directory.is_dir() else near_sibling(directory)}")
        if false_alarm_rate is not None and not 0 <= false_alarm_rate < 1:
            raise ValueError(f"false_alarm_rate is {false_alarm_rate!r}; it must be at least 0 and below 1")
        config = parse_config(["--config", str(directory / "config.yaml"), "--run_dir", str(directory)])
        return cls(monitor_of(directory, config, run_items(config), false_alarm_rate))

    @property
    def threshold(self) -> float:
        """Reading above which a conversation is flagged, 0..1."""
        return self.file.threshold

    @property
    def rates(self) -> AlarmRates:
        """Hits, false alarms and precision on the items that chose the threshold, with intervals."""
        return self.file.rates

    def save(self, folder: str | Path) -> None:
        """Write the files of the monitor, for :meth:`from_pretrained`."""
        self.file.save(Path(folder))

    def generate(
        self,
        model: Any,
        processor: Any,
        messages: Messages | Sequence[Messages],
        *,
        max_new_tokens: int = 64,
        options: Options | Sequence[Options] | None = None,
        on_flag: OnFlag | None = None,
        escalate: Callable[[Messages], str] | None = None,
        batch_size: int = 32,
        root: str | Path = ".",
        **sampling: Any,
    ) -> list[MonitoredAnswer]:
        """Answer conversations, with the reading of each.

        Args:
            model: the base model, or a PEFT model of it, in evaluation mode.
            processor: its processor, or the tokenizer of a text-only model. It is set to pad on the
                left.
            messages: one conversation or a list of them, in the form of items and in the words of
                the run's prompt (docs/how-to/data.md): ``{"role", "content"}``, content parts with ``path`` for media.
            max_new_tokens: length limit of answers.
            options: possible answers with their concepts, ``{"text", "concept"}`` each; one list for
                all conversations, or one per conversation.
            on_flag: what to do with a flagged answer that does not object: ``ask_again`` (with a
                hint), ``abstain``, ``escalate``, or a function of messages and answer that returns
                another text or None.
            escalate: for ``escalate``: a function of the messages that returns the answer.
            batch_size: conversations per forward.
            root: directory that relative paths of media start from.
            sampling: arguments of transformers' ``generate``, e.g. ``do_sample=True``. Without any,
                answers are greedy.

        Returns:
            One answer per conversation.

        Raises:
            ValueError: when the monitor was calibrated for another model, an argument is wrong, or the
                model would not read a conversation as it is written: a special token in a text,
                audio or a prompt that is too long, media that the model does not take.
            FloatingPointError: when a residual is not finite.
        """
        check_on_flag(on_flag, escalate)
        if several := sorted({"num_beams", "num_return_sequences"} & set(sampling)):
            raise ValueError(f"{several[0]} is not supported: every conversation has one answer; leave it out")
        items, loaded = self._items(messages, options), self._prepare(model, processor)
        media = self._media(loaded, items, root)

        def ask(batch: Sequence[Item], inputs: dict[str, torch.Tensor]) -> tuple[list[str], dict[int, torch.Tensor]]:
            return generate_and_read(loaded, inputs, self.file.probe.layers, max_new_tokens, sampling)

        seen = self._run(loaded, items, ask, batch_size, media)
        answers = [self._answer(item, text, reading) for item, (text, reading) in zip(items, seen, strict=True)]
        flagged = [n for n, a in enumerate(answers) if a.flag and a.disagrees is not False]
        if on_flag is None or not flagged:
            return answers

        def again(conversations: list[Messages]) -> list[str]:
            asked = [replace(items[n], messages=list(m)) for n, m in zip(flagged, conversations, strict=True)]

            def answer(batch: Sequence[Item], inputs: dict[str, torch.Tensor]) -> tuple[list[str], dict[int, torch.Tensor]]:
                return generate(loaded, loaded.model, inputs, max_new_tokens, sampling), {}

            return [text for text, _ in self._run(loaded, asked, answer, batch_size, media)]

        others = other_texts(on_flag, escalate, [(items[n].messages, answers[n]) for n in flagged], again)
        for n, text in zip(flagged, others, strict=True):
            if text is not None:
                answers[n] = replace(self._answer(items[n], text, answers[n]), before=answers[n].text)
        return answers

    def check(
        self, model: Any, processor: Any, messages: Messages | Sequence[Messages], *, batch_size: int = 32, root: str | Path = "."
    ) -> list[Reading]:
        """Read conversations without answering, e.g. before an agent calls a tool.

        Layers above the probe are not computed. Arguments and errors as for :meth:`generate`.
        """
        items, loaded = self._items(messages, None), self._prepare(model, processor)
        media = self._media(loaded, items, root)

        def read(batch: Sequence[Item], inputs: dict[str, torch.Tensor]) -> tuple[list[str], dict[int, torch.Tensor]]:
            return [""] * len(batch), read_prompts(loaded, inputs, self.file.probe.layers)

        return [reading for _, reading in self._run(loaded, items, read, batch_size, media) if reading is not None]

    def _items(self, messages: Any, options: Any) -> list[Item]:
        """Check the arguments and return one item per conversation.

        Raises:
            ValueError: naming every fault.
        """
        given = list(messages)
        conversations = [given] if given and isinstance(given[0], Mapping) else given
        problems, items = ErrorCollector("the conversations"), list[Item]()
        listed: list[Any] = list(options or ())
        shared = all(isinstance(o, Option | Mapping) for o in listed)
        if not shared and len(listed) != len(conversations):
            raise ValueError(f"{len(listed)} lists of options for {len(conversations)} conversations; give one list, or one for each")
        for n, conversation in enumerate(conversations):
            label = f"conversation {n}"
            turns = list(conversation) if isinstance(conversation, Sequence) else []
            check_messages(turns, label, problems, within=False)
            rows = [
                {"text": o.text, "concept": o.concept} if isinstance(o, Option) else dict(o) if isinstance(o, Mapping) else o
                for o in (listed if shared else listed[n])
            ]
            own = read_options({"options": rows}, label, self.file.probe.concepts, problems)[0] if rows else []
            items.append(Item(id=label, clip=label, split="test", modality="-", messages=turns, options=own))
        if not conversations:
            problems.add("there are none; give messages")
        problems.raise_if_any()
        return items

    def _prepare(self, model: Any, processor: Any) -> LoadedModel:
        """Check that this is the monitor's model, and prepare it with its processor.

        The base model is checked once, its adapters every time.
        """
        if model.training:
            raise ValueError("the model is in training mode, where dropout would change readings; call model.eval() first")
        wanted = self.file.model
        known, own, fingerprint = self._known.get(model, (None, None, ""))
        if known is not processor:
            own = copy.deepcopy(processor) if wanted.template else processor
            set_variables(own, wanted.template)
        loaded = assemble(model, own, path=str(getattr(model, "name_or_path", "")), fingerprint=fingerprint)
        if known is not processor:
            loaded.fingerprint = base_fingerprint(model, own, wanted)
            self._known[model] = (processor, own, loaded.fingerprint)
        refuse_adapters(model, self.file, loaded.fingerprint)
        return loaded

    def _media(self, loaded: LoadedModel, items: Sequence[Item], root: str | Path) -> MediaLoader:
        """Check the conversations as a run checks its items, and return the loader of their media.

        Raises:
            ValueError: when the model would not read all of them as written.
        """
        known, alarm = self.file.probe.concepts, self.file.alarm
        given = ItemSet(root=Path(root), name="conversations", concepts=known, alarm=alarm, items=tuple(items))
        media = MediaLoader(given.root, loaded.sampling_rate, framing=self.file.model.framing)
        refuse_unreadable(given, loaded.processor, media)
        return media

    def _run(
        self, loaded: LoadedModel, items: Sequence[Item], ask: Callable[..., Any], batch_size: int, media: MediaLoader
    ) -> list[tuple[str, Reading | None]]:
        """Run ``ask`` on batches of items, and return text and reading of every item, in order."""
        found = dict[str, tuple[str, Reading | None]]()
        for batch in plan_batches(items, batch_size):
            inputs = {k: v.to(loaded.device) for k, v in loaded.prompts(batch, media).items()}
            refuse_long_prompts(batch, inputs["attention_mask"], positions(loaded.model))
            texts, residuals = ask(batch, inputs)
            readings = readings_of(self.file, residuals, [i.id for i in batch]) if residuals else [None] * len(batch)
            found |= {item.id: (text, reading) for item, text, reading in zip(batch, texts, readings, strict=True)}
        return [found[item.id] for item in items]

    def _answer(self, item: Item, text: str, reading: Reading | None) -> MonitoredAnswer:
        """An answer with the option that it names."""
        assert reading is not None
        place = int(AnswerMatcher()([text], [item])[0]) if item.options else -1
        said = None if place < 0 else item.options[place]
        return MonitoredAnswer(
            reading=reading.reading,
            flag=reading.flag,
            concepts=reading.concepts,
            text=text,
            option=None if said is None else said.text,
            disagrees=None if said is None else (said.concept in self.file.alarm) != reading.flag,
        )
