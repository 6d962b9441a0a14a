"""Whole labs, as a user runs them: real processes, the real command, deadlines."""
