"""The content that the cache holds: one façade over storage, index and quota."""
