"""HTTP under `/-/` and `/metrics`."""
