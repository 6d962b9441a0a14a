"""What hypervisor and guest agree on, bit for bit: standard library only; nothing opens, waits or reads a clock."""
