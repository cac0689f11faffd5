"""Benchmarks: one command each, `python -m benchmarks.NAME [--quick] [--json FILE]`; see benchmarks/runner.py."""
