"""What a person can mend: answered in one line with an exit status, never with a traceback."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


class UserError(Exception):
    """Something that a person can mend; its message says what is wrong and what would be right."""

    status = 2  # of the command that it ends


class BeingWritten(UserError):
    """Another process writes the file."""

    status = os.EX_TEMPFAIL


class CannotWrite(UserError):
    """A file cannot be written, or its folder not made."""

    status = os.EX_IOERR


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turn an OSError inside into CannotWrite, which names ``path``."""
    try:
        yield
    except OSError as error:
        raise CannotWrite(f"{path}: cannot be written ({error.strerror or error})") from None


@contextlib.contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Turn an OSError inside, or text that is none, into UserError, which names ``path``."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text in UTF-8 ({error})") from None
