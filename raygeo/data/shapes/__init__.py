"""From records as data sets publish them to rollouts: which shape a record has, and what becomes of it."""
