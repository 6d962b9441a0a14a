"""The inline runtime: a whole lab in one process, in virtual time, decided by a seed."""
