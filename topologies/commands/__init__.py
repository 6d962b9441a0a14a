"""The verbs of the `argosy` command, one module each: plain functions that return an exit code."""
