"""What training did, as pure mathematics on deltas, models and token batches.

``weights`` compares deltas, ``curvature`` looks at the loss around a run, ``connectivity`` at the loss between runs,
``representation`` at what the models compute. One file an analysis.
"""
