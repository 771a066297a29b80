"""What the consistency objective is compared with."""
