"""Front-end device drivers, over any transport (VIRTIO 1.4, sections 3 and 5)."""
