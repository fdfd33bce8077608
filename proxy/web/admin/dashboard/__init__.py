"""The dashboard at ``/-/``: a web page on top of the Admin API."""
