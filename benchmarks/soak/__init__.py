"""A soak: real processes under varied load for as long as you like, and whether anything that they hold grows."""
