"""Back-end device models: what a device does, without transport, ring or memory (VIRTIO 1.4, section 5)."""
