"""VirtIO as both ends of a transport agree on it: virtqueues, control state, device layouts, messages.

Specification: Virtual I/O Device (VIRTIO) 1.4, committee specification 01; virtio-msg from its public draft.  Standard
library only, no clock, no socket: the same code runs in a guest's kernel, in a back end and in a test.
"""
