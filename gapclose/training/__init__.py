"""ALIGN: targets, losses, sampler, collator, trainer, LoRA, early stopping and the choice of a checkpoint."""
