"""The C files beside this one, and a short name for what is in them.

setup.py runs this file before the package and what it needs are installed: standard library only.
"""

import hashlib
from pathlib import Path


def sources() -> list[Path]:
    """Return the C files, sorted by name."""
    return sorted(Path(__file__).parent.glob("*.c"))


def version() -> str:
    """Return the first 12 hexadecimal digits of the SHA-256 of all their bytes."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources())).hexdigest()[:12]
