"""Answers of trained students on benchmarks, their accuracy, and paired statistics."""
