"""Argo as the public header has it, ring arithmetic, and what a domain needs on its own side."""
