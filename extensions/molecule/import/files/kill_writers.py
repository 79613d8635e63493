# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Kills each import as soon as it has written so many bytes: kill_writers.py FILE_OR_DEVICE=BYTES..."""

from __future__ import annotations

import contextlib
import glob
import os
import re
import signal
import sys
import time

limits = dict(argument.split("=") for argument in sys.argv[1:])
while limits:
    time.sleep(0.5)
    wanted = {os.path.realpath(path): path for path in limits}
    for fd in glob.glob("/proc/[0-9]*/fd/*"):
        with contextlib.suppress(OSError):  # the process has ended
            path = wanted.get(os.readlink(fd))
            if path is None or path not in limits:
                continue
            process = int(fd.split("/")[2])
            with open(f"/proc/{process}/io", encoding="ascii") as file:
                written = int(re.findall(r"^write_bytes: (\d+)", file.read(), re.MULTILINE)[0])
            if written >= int(limits[path]):
                os.kill(process, signal.SIGKILL)
                print(f"{path} after {written} bytes")
                del limits[path]
