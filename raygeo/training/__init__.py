"""Training one student with every loss: a DeepSpeed loop inside Ray Train, one Ray Tune trial a run."""
