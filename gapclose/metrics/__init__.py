"""COMPARE: the gap and its intervals, tests, status and verdict, computed on arrays."""
