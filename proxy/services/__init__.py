"""Work on the cache that no pull waits for."""
