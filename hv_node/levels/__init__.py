"""Levels: nested hypervisors and other hosts as one idea (docs/levels.md).  Experimental, not upstream."""
