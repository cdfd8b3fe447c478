"""Answers to benchmarks, accuracy, and paired tests."""
