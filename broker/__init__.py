"""The fabric of a lab: frames, a router core without I/O, the server loop around it, and the client every
node uses.

Imports run downwards: this package knows :mod:`hmx` and nothing above itself.
"""
