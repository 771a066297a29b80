"""gapclose: measure, close and re-measure the gap between what a multimodal model knows and what it says."""

from gapclose.models._torchvision_compat import mend_torchvision

__version__ = "0.1.0"

mend_torchvision()  # before anything imports transformers' processors
