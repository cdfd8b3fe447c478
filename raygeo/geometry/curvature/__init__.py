"""Second order: spectra, traces and products of the curvature of one named scalar, the token-mean NLL of some texts.

Everything is asked of an operator (``operators``: ``Hessian``, ``GGN``) by its products, so it fits wherever a gradient
does::

    hessian = Hessian(model, probe.batches(), names)
    ends = extreme_eigenvalues(hessian.matmat, random_signs(hessian, "lanczos", range(1)), 5)
    trace = hutch_plus_plus(hessian.matmat, ends.basis, ends.basis_trace, random_signs(hessian, "trace", range(8)))
    spectrum = estimate_spectrum(hessian.matmat, random_signs(hessian, "density", range(4)), 12, ends)
    band = spectrum.density(grid, spectrum.resolution(12))

``lanczos`` finds eigenvalues, ``trace`` and ``quadrature`` ask random vectors (``draws``), ``span`` has the matrix
between deltas, ``landscape``, ``rises`` and ``critical`` the scalar near some weights; ``chain`` takes products a layer
at a time, ``gradient_difference`` and ``difference_operator`` without second derivatives; ``spaces`` has the parameters
that a curvature is taken over, ``long`` sums over many entries, ``journal`` what is kept of a spectrum that takes
hours, ``shares`` its division over processes.
"""
