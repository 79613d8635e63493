#!/usr/bin/python
# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: glance_provider_info
short_description: Does this cloud's image service work, and what may I do there?
version_added: 0.1.0
description:
  - Authenticates, finds the image service, and tells what it is and what it lets this user do. Nothing is changed.
  - What does not work is an error of its own - a cloud that is not described (V(cloud_not_found)), refused credentials
    (V(auth_failed)), no image service (V(no_image_service)), a certificate that is not trusted (V(tls_untrusted)), a
    service that cannot be reached (V(connection_failed)) or does not answer (V(connection_timeout)).
  - Runs on the controller whatever host the play is on, and asks once for all hosts of a play.
author:
  - ImageFerry contributors (@imageferry)
extends_documentation_fragment:
  - imageferry.glance._cloud
  - imageferry.glance._attributes
  - imageferry.glance._attributes.cloud
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
  async:
    support: none
"""

EXAMPLES = r"""
- name: Look at the cloud before a long job
  imageferry.glance.glance_provider_info:
    cloud: prod
  register: prod

- name: Stop where images cannot be downloaded
  ansible.builtin.assert:
    that: prod.provider.permissions.download is not false
"""

RETURN = r"""
error:
  description: Stable code of the error's cause.
  returned: failure
  type: str
  sample: auth_failed
provider:
  description: The image service.
  returned: success
  type: dict
  contains:
    url:
      description: Address of the image service.
      type: str
      sample: https://glance.example.com:9292/v2/
    api_version:
      description: Highest version of the Image API that it speaks; null where it does not say.
      type: str
      sample: "2.18"
    region:
      description: Region of the endpoint.
      type: str
      sample: RegionOne
    interface:
      description: Interface of the endpoint.
      type: str
      sample: public
    validate_certs:
      description: Whether its certificate is checked.
      type: bool
    user:
      description: The user, its C(id), C(name) and C(domain).
      type: dict
    project:
      description: The project, its C(id), C(name) and C(domain).
      type: dict
    roles:
      description: The user's roles in the project.
      type: list
      elements: str
      sample: [member, reader]
    stores:
      description: The stores, each with its C(id), whether it is the C(default), and what else Glance says of it.
      type: list
      elements: dict
    import_methods:
      description: Glance's own ways to import an image.
      type: list
      elements: str
      sample: [glance-direct, web-download, copy-image]
    disk_formats:
      description: The disk formats that Glance accepts.
      type: list
      elements: str
      sample: [raw, qcow2, iso]
    container_formats:
      description: The container formats that Glance accepts.
      type: list
      elements: str
      sample: [bare, ova]
    quota:
      description: Each quota's C(limit) and C(usage) by its name; empty where there is none.
      type: dict
      sample: {"image_size_total": {"limit": 1000, "usage": 12}}
    permissions:
      description:
        - What this user may do - C(list), C(create), C(download), and whether the store serves C(ranges), parts of an
          image. Null where that cannot be told, as there is no image to try it with.
      type: dict
      sample: {"list": true, "create": true, "download": true, "ranges": true}
"""
