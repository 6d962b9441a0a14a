"""How a hypervisor interrupts its guests."""
