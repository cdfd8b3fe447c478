"""What faults cost, tried on purpose: inside training, and in every stage of a study."""
