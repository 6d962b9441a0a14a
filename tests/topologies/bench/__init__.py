"""`argosy bench`: its tables and arithmetic, and a tiny run of it."""
