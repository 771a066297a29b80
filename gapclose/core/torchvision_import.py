"""Let ``import torchvision`` succeed with a CPU build of torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

SYMPTOM = "torchvision::nms does not exist"
_declared: list[Any] = []  # kept alive: declarations last as long as their library object


class RepairedImport(MetaPathFinder, Loader):
    """Imports torchvision, and if its compiled operators are missing, declares two and retries.

    Package indexes often carry only torchvision's CUDA build, whose import fails with a CPU build
    of torch ("operator torchvision::nms does not exist"). Nearly every image processor of
    transformers, and its Trainer, then fail with unrelated messages. With the two operators
    declared, resizing works, because torch implements it; ``torchvision.ops`` stays unusable. Any
    other error passes unchanged. Remove when torchvision imports without its compiled operators.
    """

    def __init__(self) -> None:
        self.loader: Any = None

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != "torchvision":
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            self.loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        try:
            self.loader.exec_module(module)
        except RuntimeError as error:
            if SYMPTOM not in str(error):
                raise
            for name in [n for n in sys.modules if n.startswith("torchvision.")]:
                del sys.modules[name]
            declare()
            self.loader.exec_module(module)


def declare() -> None:
    """Declare the schemas of the operators that torchvision's import registers fake kernels for."""
    import torch

    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)


def install() -> None:
    """Repair every later import of torchvision."""
    if not any(isinstance(finder, RepairedImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, RepairedImport())
