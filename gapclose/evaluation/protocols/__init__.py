"""The source paper's own protocol, beside this package's figures."""
