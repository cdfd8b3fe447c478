"""The study as figures and one self-contained HTML page, from its tables alone."""
