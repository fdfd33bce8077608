"""Sets up container clients to pull through Millpond: ``millpond client``."""
