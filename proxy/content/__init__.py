"""The content of the cache: one façade over storage, index and quota."""
