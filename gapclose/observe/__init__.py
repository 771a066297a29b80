"""OBSERVE: one forward of an item yields its residuals and option scores, stored in shards."""
