"""Other replicas of this proxy, and the Redis that they share.

Redis may lose all its data at any time. Its data saves work, but is never authoritative.
"""
