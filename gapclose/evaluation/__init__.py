"""COMPARE: measurement of a split, controls, inference-time baselines, records of a run."""
