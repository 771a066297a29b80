"""RUN: configuration, launch, the stages of a run, validation and the command line."""
