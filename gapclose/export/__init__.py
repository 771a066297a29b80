"""EXPORT: adapter, merged and omni checkpoints, the model card, verification, vLLM and the hub."""
