"""Errors written for users.

A message names the file or field, what is wrong, and what to do. The command line prints it without a traceback.
"""

import errno
import re

#: Error numbers of the operating system, by cause.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
ACCESS_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
PATH_CONFLICT = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR)


class PyriteError(Exception):
    """A failure that is not an error in the user's input. Exit code 1."""

    exit_code = 1


class UserError(PyriteError):
    """Bad input: a file, a setting or a command that the user can fix. Exit code 2."""

    exit_code = 2


class Interrupted(PyriteError):
    """The process received SIGTERM and has saved its work. Exit code 143: start it again."""

    exit_code = 143


def cannot_open_error(error: OSError) -> UserError:
    """The error for a file outside the store that Pyrite has no permission to open."""
    return UserError(
        f"{error.filename}: cannot be opened ({error.strerror}). Fix its permissions, or use another file."
    )


def to_pyrite_error(error: Exception) -> PyriteError | None:
    """Translate ``error`` for the user; None if it is a bug in Pyrite."""
    if isinstance(error, PyriteError):
        return error
    if not isinstance(error, OSError):
        return None
    if error.errno in DISK_FULL:
        place = error.filename or "the disk of the store or of the temporary folder"
        return UserError(f"no space left on {place}. Free some, then run the same command again.")
    if error.filename and error.errno in ACCESS_DENIED:
        return cannot_open_error(error)
    if error.filename and error.errno in PATH_CONFLICT:
        return UserError(
            f"{error.filename}: the path is in use ({error.strerror}). Move what uses it, or choose another path."
        )
    return None


def plain_message(message: str) -> str:
    """An error message of pydantic without its terms, such as "must be a valid integer"."""
    message = message.removeprefix("Value error, ").replace("Input should be", "must be")
    return re.sub(r"(must be a valid \w+).*", r"\1", message)


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error of a task group to report: the first PyriteError, or else the first error."""
    error: BaseException = group.subgroup(PyriteError) or group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
