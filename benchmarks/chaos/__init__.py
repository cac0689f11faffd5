"""Faults on a real cluster in the testbed, and a checker over what its clients and agents have seen."""
