# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes docs/docsite/rst/errors.rst, the list of all errors, from the classes in plugins/module_utils/_errors.py.

``make docs`` runs it.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

from ansible_collections.imageferry.glance.plugins.module_utils._errors import FerryError, all_errors

PAGE = Path(__file__).resolve().parent / "docsite" / "rst" / "errors.rst"
_HEAD = """\
.. _ansible_collections.imageferry.glance.docsite.errors:

Errors
======

A task of this collection that fails returns, beside ``msg``, the stable code of the cause as ``error``, so that a
playbook can tell one cause from another:

.. code-block:: yaml+jinja

    - name: Import the image, if it is there yet
      imageferry.glance.glance_image_import:
        cloud: prod
        image: nightly
        path: /var/lib/libvirt/images/nightly.qcow2
      register: nightly
      failed_when: nightly.failed and nightly.error != "image_not_found"

"""


def page() -> str:
    """The whole page, as reStructuredText."""
    return _HEAD + "\n".join(_entry(cls) for cls in all_errors())


def _entry(cls: type[FerryError]) -> str:
    cause = " ".join((cls.__doc__ or "").split())
    if cls is FerryError:
        cause = "Something that this collection does not expect."
    return f"``{cls.code}``\n" + textwrap.indent(textwrap.fill(f"{cause} {cls.remedy}", 116), "    ") + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
