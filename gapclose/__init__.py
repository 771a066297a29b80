"""gapclose: measure, close and re-measure the gap between what a multimodal model knows and what it says."""

__version__ = "0.1.0"
