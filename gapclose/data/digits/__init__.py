"""The built-in digits set: handwritten and spoken digits, true and false premises, a tiny model."""
