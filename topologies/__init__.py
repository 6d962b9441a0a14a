"""The top floor: YAML topologies, the planner, the launchers and the `argosy` command."""
