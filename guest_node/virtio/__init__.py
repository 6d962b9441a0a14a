"""VirtIO in a guest: front-end drivers and back-end device models, each over any transport."""
