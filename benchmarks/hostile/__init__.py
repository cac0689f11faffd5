"""Hostile input: mutated messages on every port of real processes, and to every decoder."""
