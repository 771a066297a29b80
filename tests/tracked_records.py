"""Records of a run that is tracked, and a process that is killed while it tracks them."""

import json
from pathlib import Path

INTERVAL = {"value": 0.5, "lower": 0.25, "upper": 0.75}
RECORDS = [
    {"stage": stage, "epoch": epoch, "seed": 0, "state": "open", "action": {"balanced": INTERVAL}, "gap": {"auroc": INTERVAL}}
    for stage, epoch in (("base/val", 0), ("base/test", 0), ("epoch-1/val", 1), ("adapted/test", 1))
]
RECORDS[2]["objections"] = {"retention": "it fell"}
RECORDS[3]["stopped"] = {"retention": "it fell"}
SUMMARY = {"state": "open", "balanced": 0.5}
KILLED = """
import dataclasses, json, os, signal, sys
from pathlib import Path
from gapclose.pipeline.config import Config
from gapclose.training.tracking import make_trackers

def main():
    directory, records, before = Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3] == "before"
    config = Config(run_dir=str(directory), tracking=sys.argv[4])
    tracker = make_trackers(config, dataclasses.asdict(config))
    for number, record in enumerate(records):
        with (directory / "gap.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\\n")
        if before and number + 1 == len(records):
            os.kill(os.getpid(), signal.SIGKILL)
        tracker.record(record)
        tracker.losses(number + 1, {"loss": 0.5})
    os.kill(os.getpid(), signal.SIGKILL)

main()
"""


def written(directory: Path, *records: dict) -> None:
    """The file of truth, as a run keeps it."""
    directory.mkdir(exist_ok=True)
    (directory / "gap.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
