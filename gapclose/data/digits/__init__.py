"""The embedded world: handwritten and spoken digits, questions with true and false premises, and a tiny omnimodal model."""
