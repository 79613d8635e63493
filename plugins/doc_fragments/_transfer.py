# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  timeout:
    description:
      - Seconds without a byte, or with hardly any, after which a connection is given up, and made again. At least V(1).
    type: int
    default: 60
  retries:
    description: How often in a row to try again without getting any further, and how often to begin again.
    type: int
    default: 5
  rate_limit:
    description:
      - The most that each host moves in a second, in bytes or with a unit such as V(50MiB). All that comes by default.
      - For a whole play, C(throttle) keeps the number of hosts down that move bytes at the same time.
    type: str
  progress:
    description:
      - Whether to show, while bytes are moved, a line every few seconds that says how far it is, at what rate, and how
        long it will take.
      - Nothing is shown of images smaller than 64 MiB, in check mode, and of tasks with C(async).
    type: bool
    default: true
"""

    # For modules that read from a server.
    DOWNLOAD = r"""
options:
  connections:
    description:
      - How many connections each host reads over at the same time, V(1) to V(16).
      - V(auto) begins with one, and where the network is what is waited for, and much is left, tries four at once;
        it keeps them only if they are faster. One that brings more than 300 MB/s stays alone.
      - A server that sends no parts of an image, or refuses more connections, is read over fewer, at last over one.
    type: str
    default: auto
"""
