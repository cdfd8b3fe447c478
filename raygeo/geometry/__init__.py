"""What training did to the weights: pure mathematics on deltas, models and token batches."""
