"""The agent: its core without processes, its parts with stub nodes."""
