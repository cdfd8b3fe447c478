"""How far and where the weights moved: norms, directions and subspaces of deltas.

A delta maps names of parameters to entries, low-rank or dense (``raygeo.models.delta.open_delta``); none is multiplied
out. ``linalg`` has inner products, norms, singular values and ranks of entries, ``moments`` cosines of whole deltas
beside their null, ``subspaces`` principal angles, ``trajectory`` the way of one run, ``difference`` what moved between
two of its deltas, ``growth`` laws of growth, ``heads`` the part of each attention head. What cosines are judged by
follows from them alone: ``inner_products``, ``noise_floors``, ``separation`` (the permutation test), ``embedding`` (a
map of runs). ``principal``, ``masks``, ``intruders`` and ``power_law`` look at the weights themselves, beside what a
``random_delta`` does to them; ``signs`` compares entries of two deltas, ``recognition`` tells losses apart by features
of deltas; ``locking`` and ``rank_one`` follow the deltas of one run; ``compression`` prunes and rounds. ``base`` and
``grouping`` read weights.
"""
