"""A guest: vCPUs, a small kernel, drivers and programs, and one thin process shell."""
