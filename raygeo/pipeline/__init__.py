"""A study from beginning to end: its settings, its stages in order, and comparisons over the same stages."""
