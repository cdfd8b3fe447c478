"""What a study's runs may vary in, and how values are chosen: grids, seeded draws, Optuna."""
