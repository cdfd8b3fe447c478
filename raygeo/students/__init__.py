"""What learns: students read from disk or made here, their text, their likelihoods, their weights and the deltas of those."""
