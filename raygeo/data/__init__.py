"""What is learned from and measured on: readers, checks, grading, tokens, probes."""
