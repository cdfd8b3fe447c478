"""What learns: students read from disk or made here, what they write, and the deltas of their weights."""
