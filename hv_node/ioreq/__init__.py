"""Device models in other domains: IOREQ servers, dm_op, grants, and the ways in which they reach a guest's memory."""
