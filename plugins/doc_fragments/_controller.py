# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  _token:
    description: For this collection's own use. The short-lived token that the controller hands to the host.
    type: str
  _ca_data:
    description: For this collection's own use. The certificates that the controller trusts this cloud by.
    type: str
  _client_cert:
    description: For this collection's own use. The client certificate that this cloud wants to see.
    type: str
  _client_key:
    description: For this collection's own use. The key of the client certificate.
    type: str
"""

    WATCHED = r"""
options:
  _transfer:
    description: For this collection's own use. The folder through which the controller watches the transfer.
    type: path
"""

    IMPORT = r"""
options:
  _image:
    description: For this collection's own use. The image, as Glance describes it to the controller.
    type: dict
"""

    EXPORT = r"""
options:
  _known:
    description: For this collection's own use. The contents that are in Glance already, by the name of the disk.
    type: dict
  _images:
    description: For this collection's own use. Where the disks go, by their names.
    type: dict
"""
