"""A bucket in object storage as the second tier of the store, which machines may share.

An object is named by the digest of its content, and its metadata says to whom the content may be
given (``cards``). ``client`` is the only module that knows obstore. ``source`` reads, ``uploads``
writes in the background, ``eviction`` deletes, ``redirects`` lets clients read for themselves.
A bucket that fails or is slow is skipped for a while: it costs bandwidth, never a pull.
"""
