"""Fuzzing of every surface that reads what somebody else wrote: `python -m tests.fuzz TARGET|all`."""
