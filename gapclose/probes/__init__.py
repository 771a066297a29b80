"""READ: probes that are fitted, chosen and frozen, and what follows from their posteriors."""
