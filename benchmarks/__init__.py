"""Measures Millpond beside its rivals, in one run. `benchmarks/README.md` says how."""
