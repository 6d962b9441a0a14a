"""What real silicon does inside a guest's own process, as models without I/O."""
