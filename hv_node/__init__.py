"""A hypervisor: a core without I/O and one thin process shell."""
