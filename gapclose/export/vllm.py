"""Judge by vLLM's rules whether it serves an adapter, and write the adapter under its names.

vLLM is not run. It finds the modules of an adapter by their names in the checkpoint. PEFT uses the
names in the loaded model, which transformers may have changed. vLLM silently skips unknown names,
so they are checked here.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from gapclose.core.files import read_json, write_json
from gapclose.core.tensor_files import write_tensors
from gapclose.export.weight_names import module_on_disk
from gapclose.models.families import LORA_IN_VLLM, InVllm
from gapclose.models.loading import LoadedModel
from gapclose.models.structure import unwrap

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""allowed values of ``--max-lora-rank``; an adapter's own rank may be lower"""
PREFIX = "base_model.model."
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
REFUSED = {
    "use_dora": "it is DoRA (lora.use_dora)",
    "modules_to_save": "it carries whole modules",
    # vllm-project/vllm#21229 serves adapters of experts one by one; its documentation (docs/features/lora.md) does not name PEFT's of a whole
    # tensor, and reports say that they are dropped silently (#41384, #47088, both closed without a merge)
    "target_parameters": "it adapts experts that are one tensor, which it was reported to drop silently (vllm-project/vllm#41384; "
    "lora.experts false leaves them out)",
    "trainable_token_indices": "it carries embeddings",
}
"""key of adapter_config.json that must not be set -> reason for refusal if it is set"""


@dataclass(frozen=True, kw_only=True)
class Served:
    """Whether vLLM serves an adapter by its rules."""

    word: str
    """yes, no, or not known"""
    reasons: list[str]
    rank: int | None = None
    """smallest ``--max-lora-rank``"""
    since: str | None = None
    """smallest version of vLLM known to serve the model's class, or None"""
    names: dict[str, str] = field(default_factory=dict, repr=False)
    """module of the loaded model -> its name in the checkpoint, for every adapted module"""

    @property
    def folder(self) -> str:
        """The folder for vLLM, relative to the adapter's folder."""
        return "vllm" if any(a != b for a, b in self.names.items()) else "."

    def sentence(self) -> str:
        """Return a sentence for the model card."""
        words = f"serves in vLLM: {self.word}, because {'; '.join(self.reasons)} (by rule, not tried)"
        if self.word == "no":
            return words
        where = "the folder `vllm/`, which has the names of the checkpoint" if self.folder == "vllm" else "this folder"
        version = f", vLLM {self.since} or newer" if self.since else ", of which version of vLLM is not known"
        return f"{words}; give it {where}, with `--enable-lora --max-lora-rank {self.rank}`{version}"

    def to_dict(self) -> dict[str, Any]:
        """For ``serving.json``."""
        kept = {k: v for k, v in asdict(self).items() if k != "names"}
        return {**kept, "folder": None if self.word == "no" else self.folder, "tried": False}


def served_by_vllm(loaded: LoadedModel, folder: Path) -> Served:
    """Judge the adapter in ``folder``, which was written from ``loaded``."""
    settings, kind = read_json(folder / CONFIG), type(unwrap(loaded.model)).__name__
    against = [words for key, words in REFUSED.items() if settings.get(key)]
    if settings.get("bias", "none") != "none":
        against.append("it carries biases")
    rank = max([settings["r"], *(settings.get("rank_pattern") or {}).values()])
    most = next((r for r in RANKS if r >= rank), None)
    if most is None:
        against.append(f"its rank is {rank}, above {RANKS[-1]}")
    known = LORA_IN_VLLM.get(kind, InVllm(""))
    begins = known.begins
    if begins is None:
        against.append(f"its list of models has no LoRA for {kind}")
    modules = {k.removeprefix(PREFIX).rpartition(".lora_")[0] for k in load_file(folder / WEIGHTS)}
    found = {m: module_on_disk(loaded.model, m) for m in sorted(modules)} if not settings.get("target_parameters") else {}
    lost = [m for m, name in found.items() if name is None]
    if lost:
        against.append(f"{len(lost)} adapted modules are no modules of the checkpoint, e.g. {lost[0]}")
    names = {m: name for m, name in found.items() if name is not None}
    if begins and not all(name.startswith(begins) for name in names.values()):
        against.append(f"it serves {kind} as part of a whole checkpoint, and this one holds that part alone")
    if against:
        return Served(word="no", reasons=against)
    doubt = f"nothing is known here of {kind} in it" if kind not in LORA_IN_VLLM else known.doubt
    if doubt:
        return Served(word="not known", reasons=[doubt, "rank and kind of adapter fit"], rank=most, names=names)
    fits = [f"its list of models has LoRA for {kind}", f"rank {rank} fits", "every adapted module has a name in the checkpoint"]
    return Served(word="yes", reasons=fits, rank=most, since=known.since, names=names)


def write_for_vllm(folder: Path, served: Served) -> None:
    """Write the adapter also to ``folder/vllm`` under the checkpoint's names, if these differ."""
    if served.word == "no" or served.folder != "vllm":
        return
    renamed = {}
    for key, tensor in load_file(folder / WEIGHTS).items():
        module, _, rest = key.removeprefix(PREFIX).rpartition(".lora_")
        renamed[f"{PREFIX}{served.names[module]}.lora_{rest}"] = tensor
    write_tensors(folder / "vllm" / WEIGHTS, renamed, {"format": "pt"})
    write_json(folder / "vllm" / CONFIG, read_json(folder / CONFIG) | {"target_modules": sorted(served.names.values())})
