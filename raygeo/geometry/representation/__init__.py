"""What the models compute: hidden states and outputs on the same texts."""
