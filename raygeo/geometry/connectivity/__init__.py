"""The loss along lines, curves and planes between runs."""
