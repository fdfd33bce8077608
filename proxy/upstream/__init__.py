"""One registry to pull from: what we fetch, how it wants to be asked, and who we are.

``registry`` and ``download`` fetch, ``client`` retries, ``auth`` answers challenges with
``credentials``, ``transport`` speaks HTTP. Errors of libraries end here, as classes of
``proxy.core.errors``.
"""
