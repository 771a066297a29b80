"""OBSERVE: one forward of an item yields its residuals and the scores of its options, stored in shards."""
