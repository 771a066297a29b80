"""The source paper's own protocol, and its comparison with this package's figures."""
