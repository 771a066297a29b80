"""READ: probes that are fitted, chosen and frozen, and posteriors derived from them."""
