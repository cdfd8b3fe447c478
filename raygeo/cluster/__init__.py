"""Ray without mathematics: connecting, checking what fits, and fanning workloads out over actors."""
