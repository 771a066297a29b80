"""Inference-time baselines: methods without training, chosen on val or fit and judged on test."""
