"""How far and where the weights moved: norms, directions and subspaces of deltas."""
