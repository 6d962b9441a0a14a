"""`argosy compare`: the same work over every transport, door, way to be interrupted and depth, by counted cost."""
