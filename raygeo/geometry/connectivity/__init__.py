"""The loss along lines, curves and planes between runs, and of averages of runs.

Points are mixtures: base + sum of coefficient * delta, of merged weights (``raygeo.models.mix``). ``paths`` follows
straight lines and ``barriers`` judges them; ``curves`` are trained, ``planes`` go through three runs, ``averages`` are
soups, ``parts`` moves one part of a network, ``truncation`` cuts deltas to few directions and ``retention`` says what
that keeps; ``matching`` brings runs to one divergence; ``mixtures`` has what all of them are made of. ``measures`` are
the likelihood of texts and the answers to problems, ``confidence`` is calibration, ``evaluator`` takes them together.
"""
