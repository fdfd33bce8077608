"""A bucket in object storage as the second tier of the store, which machines may share.

The name of an object is the digest of its content, and its metadata (``cards``) defines which
repositories may serve it. ``source`` reads objects through ``client``; only ``client`` and
``stores`` import obstore. A bucket that fails or is slow is skipped for a time, which costs
bandwidth but fails no pull.
"""
