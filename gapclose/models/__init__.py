"""MODELS: load a model with its processor; its chat template, structure, hooks and sharding."""
