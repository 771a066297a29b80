"""REPORT: a run as tables (``console``) or an HTML file (``html``), several (``compare_runs``)."""
