"""What a computation takes before it is run: bytes held and operations made, counted on shapes alone."""
