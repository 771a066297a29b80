"""COMPARE: the measurement of a split, its controls, inference-time baselines, and the records of a run."""
