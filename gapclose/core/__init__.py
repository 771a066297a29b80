"""CORE: what every room uses and nothing of gapclose is imported by: files, parsing, logging, errors, distributed work."""
