"""One folder an analysis; ``registry`` finds them."""
