"""What is learned from: readers, validation, sampling and grading of rollouts."""
