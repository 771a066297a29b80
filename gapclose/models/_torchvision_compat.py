"""Let ``import torchvision`` succeed beside a CPU build of torch."""

from __future__ import annotations

import torch

_schemas: list[torch.library.Library] = []  # kept alive: a library's declarations go with it


def mend_torchvision() -> None:
    """Declare the two operators whose absence breaks the import, if it breaks for that reason.

    The package index carries no CPU build of torchvision, and the CUDA build's import dies on CPU torch with "operator
    torchvision::nms does not exist"; nearly every image processor of transformers, and its Trainer, then fail in obscure ways. With
    the schemas declared, resizing works (it is torch's own); ``torchvision.ops`` stays unusable. Remove when torchvision imports
    without its compiled operators, or the index serves a CPU build.
    """
    try:
        import torchvision
    except ImportError:
        return
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _schemas.append(library)
        import torchvision  # noqa: F401
