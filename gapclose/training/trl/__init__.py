"""Objectives that TRL trains: DPO and GRPO."""
