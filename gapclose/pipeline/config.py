"""The configuration of every job: nested dataclasses, read from YAML and ``--any.key value``.

An unknown key is refused with the nearest valid key. An invalid value is refused with the allowed
values. All faults of one configuration are raised together
(:mod:`gapclose.pipeline.config_parsing`, :mod:`gapclose.core.config_checks`).
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from gapclose.core.config_checks import Checks, Faults
from gapclose.core.errors import ErrorCollector
from gapclose.core.files import write_text
from gapclose.core.logging import LEVELS
from gapclose.core.settings import AUTO, AUTO_KEYS, RESUMABLE_KEYS, decisions, flatten, read_settings
from gapclose.data.config import READERS, DataConfig, LabellingConfig, PromptsConfig
from gapclose.evaluation.config import CONTROLS, ControlsConfig
from gapclose.export.config import ExportConfig
from gapclose.metrics.config import GapConfig
from gapclose.metrics.next_steps import FAINT_SETTINGS
from gapclose.models.config import ModelConfig
from gapclose.observe.config import ObserveConfig
from gapclose.pipeline.config_help import format_help
from gapclose.pipeline.config_parsing import all_hints, build, read_given
from gapclose.pipeline.paths import missing_places
from gapclose.probes.config import PROBE_FAMILIES, ProbeConfig
from gapclose.training.config import TERMS, DpoConfig, GrpoConfig, GuardsConfig, LoraConfig, TargetsConfig, TrainConfig
from gapclose.training.objectives import CUSTOM, active_terms, idle_terms, loss_terms
from gapclose.training.trackers.config import TRACKERS, TrackingConfig


@dataclass(kw_only=True)
class Config:
    """All settings of a run."""

    run_dir: str = "runs/digits"
    """directory for all files of the run; the same command continues an interrupted run"""
    seed: int = 0
    """seed of data, folds, adapters, batch order and resampling"""
    objective: str = "consistency"
    """training objective: consistency (targets from the reading), gold (labels), consistency+gold,
    dpo or grpo (by TRL, from the reading), or package.module:function"""
    recipe: str = "given"
    """given (the settings as they are) or auto: once `val` is measured, a faint reading (AUROC
    below 0.85) sets objective, lora.layers and targets for rounds that begin with the labels; a
    strong one leaves them as they are"""
    tracking: list[str] | str = "none"
    """none, wandb, tensorboard, trackio, mlflow, or a list of these"""
    log_level: str = "info"
    """what is logged at least: debug, info, warning or error"""
    force: bool = False
    """train even if the reading's verdict is not `real` (`--force`); the evidence records it"""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    wandb: TrackingConfig = field(default_factory=TrackingConfig)
    targets: TargetsConfig = field(default_factory=TargetsConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    observe: ObserveConfig = field(default_factory=ObserveConfig)
    gap: GapConfig = field(default_factory=GapConfig)
    controls: ControlsConfig = field(default_factory=ControlsConfig)
    guards: GuardsConfig = field(default_factory=GuardsConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    prompts: PromptsConfig = field(default_factory=PromptsConfig)
    labelling: LabellingConfig = field(default_factory=LabellingConfig)
    dpo: DpoConfig = field(default_factory=DpoConfig)
    grpo: GrpoConfig = field(default_factory=GrpoConfig)

    def __post_init__(self) -> None:
        with Checks(self) as check:
            check.choice("tracking", TRACKERS if isinstance(self.tracking, list) else ("none", *TRACKERS))
            check.choice("log_level", LEVELS)
            check.choice("recipe", ("given", "auto"))
            if check.sound("objective") and not CUSTOM.known(self.objective):
                check.add(f"{check.named('objective')}; choose one of {list(CUSTOM.names)}, or package.module:function", "objective")
            check.number("seed", least=0, most=2**32 - 1)
            if not check.sound(*(f.name for f in dataclasses.fields(self) if dataclasses.is_dataclass(f.default_factory))):
                return
            for name in ("merged", "omni"):
                if getattr(self.export, name) and self.model.quantisation:
                    message = (
                        f"export.{name} with model.quantisation {self.model.quantisation}: an adapter is not merged into rounded weights; export "
                        "the adapter, and merge it into the base as it was published"
                    )
                    check.add(message, f"export.{name}", "model.quantisation")
            if check.sound("objective"):
                self._check_objective(check)

    def _check_recipe(self, check: Checks) -> None:
        """Refuse values that ``recipe: auto`` would have to overwrite, and what it could not set."""
        now = {key: value_of(self, key) for key in FAINT_SETTINGS}
        if now == dict(FAINT_SETTINGS):  # as stored once the reading was found faint
            return
        plain = {key: {value_of(Config(), key)} for key in FAINT_SETTINGS}
        plain["train.gold"].add(TrainConfig().gold)  # 0 as stored, under objective consistency
        given = [key for key, value in now.items() if value not in {*plain[key], FAINT_SETTINGS[key]}]
        if given:
            check.add(f"recipe auto sets {', '.join(given)}; leave out what sets it, or set recipe given", "recipe", *given)
            return
        try:
            with_settings(self, FAINT_SETTINGS)
        except Faults as error:
            for fault in error.found:
                check.add(f"recipe auto, for a faint reading: {fault.message}", "recipe", *fault.keys)

    def _check_objective(self, check: Checks) -> None:
        """Set the loss weights and guards that the objective implies, and check its settings."""
        if idle := idle_terms(self.objective, self.train):
            check.add(idle, "objective", *(f"train.{term}" for term in TERMS))
            return
        if self.recipe == AUTO:
            self._check_recipe(check)
        self.train, self.guards = active_terms(self.objective, self.train), self.guards.under(self.objective)
        if self.targets.rounds > 1 and self.objective not in ("consistency", "consistency+gold"):
            message = f"targets.rounds {self.targets.rounds} needs objective consistency or consistency+gold, not {self.objective}"
            check.add(message, "targets.rounds", "objective")
        if self.targets.first == "labels" and (self.targets.rounds < 2 or self.objective != "consistency+gold"):
            message = (
                f"targets.first labels with objective {self.objective} and targets.rounds {self.targets.rounds}: it needs objective "
                "consistency+gold and at least 2 rounds; for labels alone take objective gold"
            )
            check.add(message, "targets.first", "targets.rounds", "objective")
        batch, shares = ("train.global_batch_size", "train.micro_batch_size"), ("train.retain_share", "train.gold_share")
        weights, group = [f"train.{term}" for term in TERMS], "grpo.num_generations"
        checks: list[tuple[Callable[[], object], list[str]]] = [(lambda: self.train.accumulation(1), [*batch])]
        if loss_terms(self.objective):
            checks.append((self.train.counts, [batch[0], *shares, *weights, "objective"]))
        if self.objective == "grpo":
            checks.append((lambda: self.grpo.prompts(self.train), [batch[0], group, "objective"]))
        for job, keys in checks:
            try:
                job()
            except ValueError as error:
                check.add(str(error), *keys)


def value_of(config: Config, key: str) -> Any:
    """Return the value of a dotted key."""
    group, _, name = key.rpartition(".")
    return getattr(getattr(config, group) if group else config, name)


def with_settings(config: Config, settings: Mapping[str, Any]) -> Config:
    """Return a configuration with other values of some dotted keys, checked as a given one.

    Raises:
        Faults: for values that do not fit, alone or together.
    """
    top = {key: value for key, value in settings.items() if "." not in key}
    for group in dict.fromkeys(key.rpartition(".")[0] for key in settings if "." in key):
        named = {key.rpartition(".")[2]: value for key, value in settings.items() if key.rpartition(".")[0] == group}
        top[group] = dataclasses.replace(getattr(config, group), **named)
    return dataclasses.replace(config, **top)


def config_of(settings: Mapping[str, Any], allowed: Collection[str]) -> Config:
    """Build a configuration from keys of the top level, whose groups may be dictionaries.

    Args:
        allowed: the keys that the caller takes.

    Raises:
        ValueError: naming unknown keys, or values that do not fit.
    """
    known = {f.name: f for f in dataclasses.fields(Config) if f.name in allowed}
    if unknown := sorted(set(settings) - set(known)):
        raise ValueError(f"unknown settings {unknown}; choose some of {sorted(known)}")
    values: dict[str, Any] = {}
    for name, value in settings.items():
        group = known[name].default_factory
        if isinstance(value, dict) and dataclasses.is_dataclass(group):
            keys = {f.name for f in dataclasses.fields(group)}
            if wrong := sorted(set(value) - keys):
                raise ValueError(f"unknown keys {wrong} in {name}; choose some of {sorted(keys)}")
            value = group(**value)
        values[name] = value
    return Config(**values)


def known_keys(kind: Any = Config, prefix: str = "") -> Iterator[str]:
    """Yield every dotted key of the configuration, groups included."""
    for f in dataclasses.fields(kind):
        yield prefix + f.name
        factory = f.default_factory
        if dataclasses.is_dataclass(factory):
            yield from known_keys(factory, f"{prefix}{f.name}.")


def missing_functions(config: Config) -> Iterator[str]:
    """Yield the fault of each user-defined function in the configuration that cannot be loaded."""
    named = [(CUSTOM, [config.objective]), (PROBE_FAMILIES, config.probe.families), (CONTROLS, config.controls.extra)]
    named.append((READERS, [] if config.data.format is None else [config.data.format]))
    for registry, names in named:
        for name in set(names) - set(registry.built_in):
            try:
                registry.get(name)
            except ValueError as error:
                yield str(error)


def parse_config(arguments: Sequence[str], *, prog: str = "gapclose", starting: bool = False) -> Config:
    """Build the configuration from command-line arguments (``--config FILE --any.key value``).

    Args:
        starting: also check what a start needs: directories that it writes to, files that it reads, and functions of the user's own.

    Raises:
        ValueError: naming everything that is wrong: unknown keys with the nearest valid one, values that do not fit, with what would.
        SystemExit: after ``--help`` or ``--print_config``, which print what their name says.
    """
    if {"-h", "--help"} & set(arguments):
        print(format_help(Config, prog))
        sys.exit(0)
    wanted = [word for word in arguments if word != "--print_config"]
    problems, hints = ErrorCollector("the configuration", most=1000, alike=1000), all_hints(Config)
    config = build(Config, read_given(wanted, hints, problems), hints, problems)
    if starting and config is not None:
        for fault in (*missing_places(config.run_dir, config.data, config.model, config.observe), *missing_functions(config)):
            problems.add(fault)
    problems.raise_if_any()
    assert config is not None
    if len(wanted) < len(arguments):
        print(_dump(config), end="")
        sys.exit(0)
    return config


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any], directory: Path) -> dict[str, tuple[Any, Any]]:
    """Return the settings with which a directory cannot go on: key -> value there, value now.

    A key that is not in ``before`` was added to gapclose later, and had its default then. The keys in
    :data:`RESUMABLE_KEYS` may differ. ``auto`` agrees with what was given before, and with what it
    came to. So does ``recipe: auto`` with what it set, and with a run that has trained nothing yet.

    Args:
        before: dotted key -> value, as it began. now: all groups or some, nested.
        directory: where ``auto.json`` is.
    """
    began, now, found = flatten(dataclasses.asdict(Config())) | dict(before), flatten(dict(now)), decisions(directory)
    for key in AUTO_KEYS:
        if began[key] == AUTO:
            began[key] = found.get(key, {}).get("value", now.get(key))
    agreed = {key for key in AUTO_KEYS if now.get(key) == AUTO}
    if now.get("recipe") == AUTO and (began["recipe"] == AUTO or not (directory / "checkpoints").exists()):
        agreed |= {"recipe", *FAINT_SETTINGS} if began["recipe"] == AUTO else {"recipe"}
    return {k: (began.get(k), v) for k, v in now.items() if began.get(k) != v and k not in agreed and not k.startswith(RESUMABLE_KEYS)}


def refuse_other_run(config: Config, path: Path) -> None:
    """Check that the run whose configuration is at ``path``, if any, has the same settings.

    They may differ as :func:`changed_settings` says.

    Raises:
        ValueError: naming each setting that differs, with both values, or a damaged file.
    """
    if not path.is_file():
        return
    changed = changed_settings(read_settings(path.parent), yaml.safe_load(_dump(config)), path.parent)
    if changed:
        listed = "\n".join(f"  - {k}: {a!r} there, {b!r} now" for k, (a, b) in changed.items())
        raise ValueError(
            f"{path.parent} holds a run with other settings:\n{listed}\nGive this one another directory (--run_dir), or delete that one."
        )


def save_config(config: Config, path: Path) -> None:
    """Write every setting, defaults included, unless :func:`refuse_other_run` refuses."""
    refuse_other_run(config, path)
    overwrite_config(config, path)


def overwrite_config(config: Config, path: Path) -> None:
    """Write every setting, defaults included."""
    write_text(path, _dump(config))


def _dump(config: Config) -> str:
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False)
