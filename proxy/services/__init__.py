"""Background and operator work on the cache; no pull waits for it."""
