"""What lies between one hypervisor and the next: the fabric above an L0, the parent above a nested one, and below."""
