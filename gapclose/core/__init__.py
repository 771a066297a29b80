"""CORE: files, parsing, logging, errors and distributed work.

Every room uses it; it imports no other room.
"""
