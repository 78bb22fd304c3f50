"""A model on an input: its convolutions recorded, counted, timed, verified and reported."""
