"""A guest's small kernel: pages, start, hypercalls."""
