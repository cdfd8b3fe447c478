"""Second order: spectra, traces and products of the curvature of one named scalar."""
