"""ALIGN: targets, losses, batches, trainer, LoRA, early stopping, selection of a checkpoint."""
