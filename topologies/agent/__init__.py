"""The agent: parent of a lab's processes, owner of its run directory, and the one who says how it went."""
