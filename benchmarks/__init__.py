"""Measures Millpond beside its rivals, on one machine, in one run. `benchmarks/README.md` says how."""
