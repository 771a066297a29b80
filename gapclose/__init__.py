"""gapclose: measure, close and re-measure the gap between what a multimodal model knows and what it says."""

from gapclose.core.torchvision_import import install

__version__ = "0.1.0"

install()
