"""The student as a model: loading, parameters, deltas, adapters, likelihood, mixing."""
