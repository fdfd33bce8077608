"""Stored content on a local disk: bytes by digest, verified, each digest at most once."""
