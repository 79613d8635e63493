# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  cloud:
    description: Name of a cloud in the controller's clouds.yaml, or a dictionary with the same keys as such an entry.
    type: raw
  auth:
    description: Credentials, as in clouds.yaml, instead of a named cloud.
    type: dict
  auth_type:
    description: Name of the keystoneauth plugin to use.
    type: str
  region_name:
    description: Name of the region.
    type: str
  interface:
    description: Which endpoint of the catalogue to use.
    type: str
    choices: [admin, internal, public]
    default: public
    aliases: [endpoint_type]
  validate_certs:
    description: Whether to check the server's certificate.
    type: bool
    aliases: [verify]
  ca_cert:
    description: Path, on the controller, of the CA certificates to check it by.
    type: str
    aliases: [cacert]
  client_cert:
    description: Path, on the controller, of a client certificate for Keystone and Glance; hosts show it, too.
    type: str
    aliases: [cert]
  client_key:
    description: Path, on the controller, of the client certificate's key.
    type: str
    aliases: [key]
  api_timeout:
    description: Seconds to wait for an answer of Keystone or Glance.
    type: int
"""
