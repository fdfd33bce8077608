"""Lists of images: one a line, with ``#`` before comments."""

from proxy.services.image_files.results import FoundReferences


def read(text: str, name: str) -> FoundReferences:
    """Return the images of a list. A lock file is such a list too."""
    found = FoundReferences()
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split() if not line.lstrip().startswith("#") else []
        if len(words) == 1:
            found.add(words[0])
        elif words:
            found.problems.append(f"{name}, line {number}: more than an image: {line.strip()[:80]}")
    return found
