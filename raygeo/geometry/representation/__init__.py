"""What models compute on the same texts: hidden states, predictions, gradients.

``features`` makes vectors of hidden states, ``cka`` compares two models' and ``kernels`` takes out what dominates them;
``drift`` follows single tokens, ``predictions`` the distributions over the next one, ``coherence`` the gradients of
examples, which ``projection`` makes short.
"""
