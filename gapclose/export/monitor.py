"""Make the monitor of a run: its frozen probe, with a threshold chosen on val."""

from __future__ import annotations

from pathlib import Path

from gapclose.core.files import read_json
from gapclose.data.item_set import ItemSet
from gapclose.evaluation.monitor_file import MonitoredModel, MonitorFile, false_premise
from gapclose.evaluation.run_records import record_of
from gapclose.export.context import ExportSettings
from gapclose.export.peft import checkpoint_name
from gapclose.metrics.alarms import alarm_rates, choose_threshold
from gapclose.metrics.calibration import event_bins
from gapclose.metrics.labels import Labels
from gapclose.observe.store import read_observations
from gapclose.probes.linear import FrozenProbe

SPLIT = "val"
BINS = 10
"""bins of the calibration table"""


class NoMonitor(ValueError):
    """A run of which no monitor can be made; the message says why."""


def monitor_of(directory: Path, config: ExportSettings, items: ItemSet, rate: float | None = None) -> MonitorFile:
    """Make the monitor of a run from its files, without a model.

    With all adapters above the probe's layer it is calibrated on the base model, whose residuals
    there are the adapted model's. Otherwise it is calibrated on the adapted model of the chosen
    epoch.

    Args:
        directory: of the run.
        items: of the run, under its own prompt.
        rate: largest share of the standard items of val that may be flagged, 0 <= rate < 1; None:
            ``export.monitor_false_alarms``.

    Raises:
        NoMonitor: when no concept is an alarm, or val was not observed or lacks labels of one
            kind.
        ValueError: for another rate, and when a file of the run is damaged.
    """
    probe = FrozenProbe.load(directory / "probes" / "frozen")
    n_layers = read_json(directory / "measurement.json", "probe")["probe"]["n_layers"]
    above = config.lora.chosen(n_layers, probe.layer)[0] > probe.layer
    stage = f"base-{SPLIT}"
    if not above:
        record = record_of(directory, "adapted/test")
        if record is None:
            raise NoMonitor(
                f"{directory}: adapters lie below the probe's layer, and the run is not finished; finish it with `gapclose close`"
            )
        stage = f"epoch-{record['epoch']}-{SPLIT}"
    return monitor_of_observations(directory, config, items, stage, above=above, rate=rate)


def monitor_of_observations(
    directory: Path, config: ExportSettings, items: ItemSet, stage: str, *, above: bool, rate: float | None = None
) -> MonitorFile:
    """Make a monitor from the frozen probe in ``directory`` and from stored observations of val.

    Args:
        stage: folder of the observations, e.g. ``base-val``.
        above: whether the probe reads the base model's residuals, before and after training.
        directory, config, items, rate: as for :func:`monitor_of`, with the same errors.
    """
    rate = config.export.monitor_false_alarms if rate is None else rate
    if not 0 <= rate < 1:
        raise ValueError(f"false_alarm_rate is {rate!r}; it is a share, at least 0 and below 1")
    probe = FrozenProbe.load(directory / "probes" / "frozen")
    if not items.alarm:
        raise NoMonitor(f"{directory}: no concept of the items is an alarm, so there is nothing to flag")
    folder = directory / "observations" / stage
    if not (folder / "manifest.json").is_file():
        raise NoMonitor(f"{folder} is not there; a threshold needs the observations of {SPLIT}, which `gapclose close` makes")
    seen = read_observations(folder, layers=probe.layers)
    known = set(seen.ids)
    val = items.holding([i for i in items.select(split=SPLIT, purpose="gap") if i.id in known and i.gold is not None])
    if not len(val):
        raise NoMonitor(f"{folder} holds no labelled item of {SPLIT}; label some, or restore the items that the run was made with")
    request, labels = read_json(folder / "request.json", "model", "dtype"), Labels.of(val)
    concepts = probe.predict_proba(probe.features(seen.take([i.id for i in val]).residuals))
    reading, alarm = false_premise(concepts, probe.concepts, items.alarm), ~labels.standard
    try:
        threshold = choose_threshold(reading, alarm, rate)
    except ValueError as error:
        raise NoMonitor(f"{directory}: {SPLIT}: {error}") from error
    return MonitorFile(
        probe=probe,
        alarm=items.alarm,
        threshold=threshold,
        false_alarm_rate=rate,
        split=SPLIT,
        rates=alarm_rates(reading > threshold, alarm, labels.clip, replicates=config.gap.replicates, seed=config.seed),
        calibration=tuple(event_bins(reading, alarm, BINS)),
        model=MonitoredModel(
            name=checkpoint_name(config.model.resolved_path),
            revision=config.model.revision,
            fingerprint=request["model"],
            adapter=None if above else request["adapter"],
            adapters_above=above,
            dtype=request["dtype"].removeprefix("torch."),
            template=config.model.template or {},
            prompt=config.prompts.asked,
            frames=items.framing.frames,
            side=items.framing.side,
        ),
    )
