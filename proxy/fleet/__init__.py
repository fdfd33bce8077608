"""Other replicas of this proxy, and the Redis that they share.

Everything in Redis may be lost at any moment. It is a hint that saves work, never the truth.
"""
