"""What a run of the fuzzer found: counts by kind, findings by cause."""

from __future__ import annotations

import importlib.metadata
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.fuzz.worker import Finding, Outcome

PACKAGES = ("pillow", "soundfile", "av", "soxr", "numpy", "pyarrow", "pyyaml", "jsonargparse")


@dataclass(kw_only=True, slots=True)
class Tally:
    """Of one kind of input."""

    inputs: int = 0
    read: int = 0
    refused: int = 0
    found: int = 0
    seconds: float = 0.0
    """of processor time, in the loaders alone"""
    peak_bytes: int = 0


@dataclass(kw_only=True, slots=True)
class Report:
    """Of a run."""

    seed: int
    kinds: dict[str, Tally] = field(default_factory=lambda: defaultdict(Tally))
    findings: list[Finding] = field(default_factory=list)
    slowest: tuple[float, int] = (0.0, -1)
    """seconds and number of the input that took most of them"""
    largest: tuple[int, int] = (0, -1)
    """bytes and number of the input that took most of them"""

    def add(self, outcome: Outcome) -> None:
        tally = self.kinds[outcome.kind]
        tally.inputs += 1
        tally.seconds += outcome.seconds
        tally.peak_bytes = max(tally.peak_bytes, outcome.peak_bytes)
        self.slowest = max(self.slowest, (outcome.seconds, outcome.number))
        self.largest = max(self.largest, (outcome.peak_bytes, outcome.number))
        if outcome.finding:
            tally.found += 1
            self.findings.append(outcome.finding)
        elif outcome.read:
            tally.read += 1
        else:
            tally.refused += 1

    @property
    def inputs(self) -> int:
        return sum(t.inputs for t in self.kinds.values())

    def table(self) -> str:
        """Counts by kind, as Markdown."""
        lines = ["| kind | inputs | read | refused | neither | inputs a second | most memory, MiB |", "|---|---|---|---|---|---|---|"]
        for kind, t in [*sorted(self.kinds.items()), ("all", self._all())]:
            speed = f"{t.inputs / t.seconds:,.0f}" if t.seconds else ""
            lines.append(f"| {kind} | {t.inputs:,} | {t.read:,} | {t.refused:,} | {t.found:,} | {speed} | {t.peak_bytes / 2**20:,.0f} |")
        return "\n".join(lines)

    def _all(self) -> Tally:
        tallies = list(self.kinds.values())
        sums = {key: sum(getattr(t, key) for t in tallies) for key in ("inputs", "read", "refused", "found", "seconds")}
        return Tally(**sums, peak_bytes=max((t.peak_bytes for t in tallies), default=0))

    def extremes(self) -> str:
        """The inputs that took most time and memory."""
        return (
            f"slowest: number {self.slowest[1]}, {self.slowest[0]:.1f} s of processor time; most memory: number {self.largest[1]}, "
            f"{self.largest[0] / 2**20:,.0f} MiB"
        )

    def causes(self) -> list[str]:
        """One line per cause, the most frequent first, with the command that repeats one of its inputs."""
        groups: dict[tuple[str, str, str], list[Finding]] = defaultdict(list)
        for finding in self.findings:
            groups[finding.group].append(finding)
        return [
            f"{len(found)} x {found[0].what} ({', '.join(sorted({f.kind for f in found}))}): {found[0].message[:300]}\n"
            f"    at {found[0].place or '?'}\n    python -m tests.fuzz.replay {self.seed} {min(f.number for f in found)}"
            for found in sorted(groups.values(), key=lambda g: -len(g))
        ]

    def as_json(self, **more: Any) -> dict[str, Any]:
        versions = {name: importlib.metadata.version(name) for name in PACKAGES}
        counts = {"inputs": self.inputs, "findings": len(self.findings), "slowest": self.slowest, "largest": self.largest}
        kinds = {kind: asdict(tally) for kind, tally in sorted(self.kinds.items())}
        return {"seed": self.seed, **more, **counts, "kinds": kinds, "causes": self.causes(), "versions": versions}
