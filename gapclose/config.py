"""The one configuration of every job: nested dataclasses, read from YAML, overridden by ``--any.key value``.

A key that does not exist is refused by name, with the nearest one that does; all such keys are named at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from gapclose.adapters import LoraConfig
from gapclose.baselines.dpo import DpoConfig
from gapclose.baselines.grpo import GrpoConfig
from gapclose.data_config import DataConfig
from gapclose.errors import Fault, Problems, shortened
from gapclose.examine.config import ControlsConfig
from gapclose.files import write_text
from gapclose.gap import GapConfig
from gapclose.guards import GuardsConfig
from gapclose.labelling import LabellingConfig
from gapclose.models import ModelConfig
from gapclose.objectives import LOSS_TERMS, acting
from gapclose.observe import ObserveConfig
from gapclose.probe_search import ProbeConfig
from gapclose.settings import FREE_KEYS, WHOLE_KEYS, flatten
from gapclose.strict import parse_yaml, read_text
from gapclose.targets import TargetsConfig
from gapclose.train_config import TrainConfig
from gapclose.wordings import PromptsConfig

ALIASES = 20
"""YAML aliases that a configuration may hold: aliases of aliases grow with every level when a value is written out"""


@dataclass(kw_only=True)
class ExportConfig:
    """What a run leaves behind for others."""

    merged: bool = False
    """also write the model with the adapter merged in"""
    omni: bool = False
    """also write the whole omni checkpoint (Qwen2.5-Omni, Qwen3-Omni) with the adapter folded into its thinker; takes as much disk as the base"""
    push: str | None = None
    """OWNER/NAME on the hub: upload what was verified there (merged and omni as OWNER/NAME-merged and -omni); null uploads nothing"""
    private: bool = True
    """create repositories that only their owner can read"""
    verify: bool = True
    """reload the export in a fresh process and compare scores and answers"""
    tolerance: float = 1e-3
    """largest difference of an option score, in nats, that --verify accepts for the adapter; for the merged model ten times as much in
    float32, and in half precision, where merging rounds every weight again, 200 times as much (0.2 nats by default); there a generated
    answer may differ, too, where the two best options lay nearer than that"""

    def __post_init__(self) -> None:
        if self.push is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", self.push):
            raise ValueError(f"export.push is {self.push!r}; write OWNER/NAME")
        if self.push is not None and not self.verify:
            raise ValueError("export.push uploads what was verified, and export.verify is false; set it true, or leave export.push out")


@dataclass(kw_only=True)
class TrackingConfig:
    """Where records are mirrored to."""

    project: str = "gapclose"
    """Weights & Biases project"""
    name: str | None = None
    """run name; null: the run directory's name"""


@dataclass(kw_only=True)
class Config:
    """Everything a run is determined by."""

    run_dir: str = "runs/digits"
    """where everything is written; the same command continues an interrupted run"""
    seed: int = 0
    """of data, folds, adapters, batch order and resampling"""
    force: bool = False
    """train on a reading whose verdict is not `real` (`--force`); recorded in the evidence"""
    tracking: str = "none"
    """none or wandb"""
    objective: str = "consistency"
    """what is trained on: consistency (targets from the reading), gold (labels), consistency+gold, dpo or grpo (TRL's, from the reading)"""
    data: DataConfig = field(default_factory=DataConfig)
    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    labelling: LabellingConfig = field(default_factory=LabellingConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    observe: ObserveConfig = field(default_factory=ObserveConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    gap: GapConfig = field(default_factory=GapConfig)
    controls: ControlsConfig = field(default_factory=ControlsConfig)
    targets: TargetsConfig = field(default_factory=TargetsConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    guards: GuardsConfig = field(default_factory=GuardsConfig)
    dpo: DpoConfig = field(default_factory=DpoConfig)
    grpo: GrpoConfig = field(default_factory=GrpoConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    wandb: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        if self.tracking not in ("none", "wandb"):
            raise ValueError(f"tracking is {self.tracking!r}; choose none or wandb")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it must not be negative")
        for name in ("merged", "omni"):
            if getattr(self.export, name) and self.model.quantisation:
                raise ValueError(
                    f"export.{name} with model.quantisation {self.model.quantisation}: an adapter is not merged into rounded weights; export "
                    "the adapter, and merge it into the base as it was published"
                )
        self.train, self.guards = acting(self.objective, self.train), self.guards.under(self.objective)
        if self.targets.rounds > 1 and not (self.objective in LOSS_TERMS and self.train.consistency):
            raise ValueError(f"targets.rounds {self.targets.rounds} needs objective consistency or consistency+gold, not {self.objective}")
        if self.objective == "grpo":
            self.grpo.prompts(self.train)


def known_keys(kind: Any = Config, prefix: str = "") -> Iterator[str]:
    """Every dotted key of the configuration, groups included."""
    for f in dataclasses.fields(kind):
        yield prefix + f.name
        factory = f.default_factory
        if dataclasses.is_dataclass(factory):
            yield from known_keys(factory, f"{prefix}{f.name}.")


def parse_config(arguments: Sequence[str], *, prog: str = "gapclose") -> Config:
    """Build the configuration from command-line arguments (``--config FILE --any.key value``).

    Raises:
        ValueError: naming every unknown key with its nearest valid one, or the value that does not fit.
    """
    arguments = ["--force=true" if a == "--force" and not _has_value(arguments, n) else a for n, a in enumerate(arguments)]
    files = _refuse_unknown(arguments)
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog=prog, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file; options after it override its values")
    parser.add_class_arguments(Config)
    try:
        values = vars(parser.instantiate(parser.parse_args(list(arguments))))
        values.pop("config", None)
        return Config(**values)
    except (ArgumentError, TypeError, OverflowError) as error:  # null where a number is compared, a number that no float holds
        raise ValueError(f"the configuration ({', '.join([*files, 'command line'])}) does not fit: {shortened(str(error))}") from error


def _has_value(arguments: Sequence[str], place: int) -> bool:
    """Whether the option at ``place`` is followed by its value."""
    return place + 1 < len(arguments) and not arguments[place + 1].startswith("--")


def _refuse_unknown(arguments: Sequence[str]) -> list[str]:
    """Raise for every key that does not exist, wherever it stands; return the configuration files named."""
    known = set(known_keys())
    problems, files = Problems("the configuration"), []

    def check(key: str, where: str) -> None:
        if key in known or key.startswith(tuple(f"{whole}." for whole in WHOLE_KEYS)):
            return
        last = {k.rpartition(".")[2]: k for k in sorted(known)}
        near = difflib.get_close_matches(key, known, n=1) or difflib.get_close_matches(key.rpartition(".")[2], last, n=1)
        hint = f"; did you mean {last.get(near[0], near[0])!r}?" if near else "; `gapclose close --help` lists all keys"
        problems.add(f"{where}: unknown key {key!r}{hint}")

    for position, argument in enumerate(arguments):
        if not argument.startswith("--"):
            continue
        key, _, value = argument[2:].partition("=")
        if key == "config":
            following = arguments[position + 1 : position + 2]
            if not value and (not following or following[0].startswith("--")):
                problems.add("command line: --config needs a file")
                continue
            path = Path(value or following[0])
            files.append(str(path))
            for name in _file_keys(path, problems):
                check(name, str(path))
        elif key not in ("help", "print_config"):
            check(key, "command line")
    problems.raise_if_any()
    return files


def _file_keys(path: Path, problems: Problems) -> list[str]:
    """Dotted keys of a YAML file, outermost groups that are unknown standing for all below them."""
    if not path.is_file():
        problems.add(f"{path}: no such configuration file")
        return []
    try:
        tree = parse_yaml(read_text(path), aliases=ALIASES, exact=False) or {}
    except (OSError, Fault) as error:
        problems.add(f"{path}: not YAML ({error})")
        return []
    if not isinstance(tree, dict):
        problems.add(f"{path}: holds {type(tree).__name__}, not keys and values")
        return []
    if {"run", "budgets", "objectives"} <= set(tree):
        problems.add(f"{path}: compares many runs; `python recipes/compare.py --config {path}` reads it")
        return []
    known = set(known_keys())
    groups = {key.rpartition(".")[0] for key in known}

    def walk(node: dict, prefix: str) -> Iterator[str]:
        for name, value in node.items():
            key = f"{prefix}{name}"
            if key in groups and not isinstance(value, dict):
                problems.add(f"{path}: {key} is {value!r}; it is a group: write its keys below it, or leave it out")
            yield key
            if isinstance(value, dict) and key in known and key not in WHOLE_KEYS:
                yield from walk(value, key + ".")

    return list(walk(tree, ""))


def refuse_other_run(config: Config, path: Path) -> None:
    """Check that the run whose configuration is at ``path``, if any, was started with the same settings.

    A key that the stored configuration lacks is younger than the run, which therefore had its default.

    Raises:
        ValueError: naming each setting that differs, with both values.
    """
    if not path.is_file():
        return
    before, now = (flatten(yaml.safe_load(text)) for text in (path.read_text(encoding="utf-8"), _dump(config)))
    before = flatten(dataclasses.asdict(Config())) | before
    changed = {k: (before.get(k), v) for k, v in now.items() if before.get(k) != v and not k.startswith(FREE_KEYS)}
    if changed:
        listed = "\n".join(f"  - {k}: {a!r} there, {b!r} now" for k, (a, b) in changed.items())
        raise ValueError(
            f"{path.parent} holds a run with other settings:\n{listed}\nGive this one another directory (--run_dir), or delete that one."
        )


def save_config(config: Config, path: Path) -> None:
    """Write every setting, defaults included, unless :func:`refuse_other_run` refuses."""
    refuse_other_run(config, path)
    write_text(path, _dump(config))


def _dump(config: Config) -> str:
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False)
