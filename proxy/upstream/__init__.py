"""One registry to pull from: requests, authorization, and credentials.

``registry`` and ``download`` fetch, ``client`` retries, ``auth`` answers challenges with
``credentials``, ``transport`` speaks HTTP. Errors of libraries end here, as classes of
``proxy.core.errors``.
"""
