"""Bundles: images as files that are carried to another cache.

A bundle is an OCI image layout, as a tar file or a directory, that other tools read too.
``contents`` says what is in it and is signed (``signatures``); ``trees`` reads what may be hostile;
``archive`` writes. Nothing here knows a cache: ``web.admin`` and ``cli`` connect both.
"""
