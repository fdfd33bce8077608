"""Bundles: images as files for another cache.

A bundle is an OCI image layout, as a tar file or a directory, that other tools read too.
``contents`` lists its content and is signed (``signatures``); ``trees`` reads untrusted files;
``archive`` writes. This package does not depend on a cache: ``web.admin`` and ``cli`` connect both.
"""
