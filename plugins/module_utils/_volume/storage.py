# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the storage of this host reports, as this collection's errors."""

from __future__ import annotations

import contextlib
import errno
import typing as t

from ansible_collections.imageferry.glance.plugins.module_utils._errors import (
    FerryError,
    NoSpace,
    StorageError,
    VolumeInvalid,
)

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextlib.contextmanager
def storage_errors(attempt: str, remedy: str | None = None) -> t.Iterator[None]:
    """Turns what the storage reports into this collection's errors; a missing file stays C(FileNotFoundError).

    :param attempt: what was tried, for the message: C(read /a/b).
    :param remedy: what to do, where that is not the error's own.
    """
    try:
        yield
    except (FerryError, FileNotFoundError):
        raise
    except OSError as err:
        if err.errno in _FULL:
            raise NoSpace(f"Cannot {attempt}: {err.strerror}.", remedy) from err
        if err.errno in (errno.ELOOP, errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.EROFS):
            raise VolumeInvalid(f"Cannot {attempt}: {err.strerror}.", remedy) from err
        raise StorageError(f"Cannot {attempt}: {err.strerror or err}.", remedy) from err
