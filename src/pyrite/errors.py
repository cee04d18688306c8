"""Errors that are written for the person who reads them.

A message names the file (or field), what was wrong, and what to do. The command line prints it without a traceback.
"""

import errno

#: What the system says where a disk is full, where it refuses access, and where a file stands in a folder's place.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
ACCESS_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
PATH_CONFLICT = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR)


class PyriteError(Exception):
    """Something failed that is not the user's doing. Exit code 1."""

    exit_code = 1


class UserError(PyriteError):
    """Bad input: a file, a setting or a command that a person can mend. Exit code 2."""

    exit_code = 2


class Interrupted(PyriteError):
    """The process was told to stop (SIGTERM) and has put its work away. Exit code 143: to be started again."""

    exit_code = 143


def cannot_open_error(error: OSError) -> UserError:
    """For a file, other than the store's, that the system does not let Pyrite open."""
    return UserError(f"{error.filename}: cannot be opened ({error.strerror}). Mend its permissions, or name another.")


def to_pyrite_error(error: Exception) -> PyriteError | None:
    """``error`` as a person should read it, or None where it is a fault in Pyrite."""
    if isinstance(error, PyriteError):
        return error
    if not isinstance(error, OSError):
        return None
    if error.errno in DISK_FULL:
        where = f"for {error.filename}" if error.filename else "where Pyrite writes: the store, or the temporary folder"
        return UserError(f"no space left {where}. Free some, and give the same command again.")
    if error.filename and error.errno in ACCESS_DENIED:
        return cannot_open_error(error)
    if error.filename and error.errno in PATH_CONFLICT:
        return UserError(f"{error.filename}: something else stands there ({error.strerror}). Move it, or name another.")
    return None


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error of a group of tasks that a person should read: one of ours, where there is one."""
    error: BaseException = group.subgroup(PyriteError) or group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
