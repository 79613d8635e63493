#!/usr/bin/python
# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: glance_image
short_description: Make, change and remove images in Glance
version_added: 0.1.0
description:
  - Makes an image from a file of the controller or from any HTTP server, or has Glance fetch or copy it itself; changes
    its metadata, tags, visibility, protection and members; removes one image, or many.
  - The bytes are streamed in constant memory, hashed on their way, and held against what Glance computed of them. Until
    then the image is private and hidden, and an image that fails in any way is removed again.
  - What is not asked for is left as it is. Only O(purge_properties), O(purge_tags) and O(purge_members) take away what
    is not named.
  - A name means the images of the project that the task works in, hidden ones too, but neither those that others share
    with it, nor public ones of others; an id means any image.
  - Runs on the controller whatever host the play is on, and once for all hosts of a play that ask for the same.
options:
  state:
    description: Whether the image is to be there.
    type: str
    choices: [present, absent]
    default: present
  name:
    description:
      - Name of the image. Several of this name are an error that lists them, unless O(on_existing=new), or one of them
        has the content that is asked for.
      - With O(id), the name that it is to have.
    type: str
  id:
    description: Id of the image; one that is made gets it. The id of a removed image cannot be used again.
    type: str
  filter:
    description:
      - Which images of the project to remove, however many they are, with O(state=absent). At least one option has to
        say something that is not true of all of them.
    type: dict
    suboptions:
      name:
        description: Name of the images, or a pattern with C(*), C(?) and C([...]) as in a shell.
        type: str
      status:
        description: Statuses to include; an empty list for all.
        type: list
        elements: str
        default: [active]
      disk_format:
        description: Disk formats to include, those that this collection carries by default; an empty list for all.
        type: list
        elements: str
        default: [raw, qcow2, iso, vmdk, vhd, vhdx, vdi]
      tags:
        description: Tags that the images all have.
        type: list
        elements: str
        default: []
      visibility:
        description: Visibility of the images.
        type: str
        choices: [all, public, private, shared, community]
      owner:
        description: Id of the project that owns the images, by default the one that the task works in.
        type: str
      properties:
        description: Any other properties and the values that they have; V(os_hidden) with V("true") for hidden images.
        type: dict
        default: {}
      size_min:
        description: Smallest size, in bytes or with a unit such as V(2GiB).
        type: str
      size_max:
        description: Largest size, in bytes or with a unit.
        type: str
      created_after:
        description: Earliest creation, UTC, as V(2026-01-31T00:00:00Z).
        type: str
      created_before:
        description: Latest creation, UTC, as V(2026-01-31T00:00:00Z).
        type: str
      updated_after:
        description: Earliest last change, UTC, as V(2026-01-31T00:00:00Z).
        type: str
      updated_before:
        description: Latest last change, UTC, as V(2026-01-31T00:00:00Z).
        type: str
  unprotect:
    description: Remove or replace an image although it is protected.
    type: bool
    default: false
  src:
    description:
      - Path of a file on the controller with the image's bytes. A relative one is looked for as
        M(ansible.builtin.copy) does.
    type: path
  url:
    description:
      - Address of the image's bytes on an HTTP or HTTPS server, read by the controller, and on a lost connection read
        on where it broke off; with O(import_method=web-download) read by Glance. The server has to say how many bytes
        there are before it sends them.
      - The server's certificate is checked by the CAs that the controller trusts; O(ca_cert), O(validate_certs) and
        O(client_cert) are for the cloud.
    type: str
  headers:
    description: Request headers to send to O(url). They are never sent to another host, and their values never shown.
    type: dict
  checksum:
    description:
      - What the bytes must hash to, as C(algorithm:digest). The digest may also be the address of a list such as
        C(SHA512SUMS).
      - Without it, an image of this name that is there is compared with O(src) or O(url) by reading them once; with
        O(import_method=web-download) its name alone tells that it is the one.
      - For O(import_method=web-download) it has to be of the kind that Glance computes, usually sha512, or an md5.
    type: str
  on_existing:
    description:
      - What to do when the image of this name has other content.
      - V(fail) is an error. V(replace) puts the new image in its place, with the old one's metadata unless others are
        asked for, and another id; the old one is removed once the new one is whole, verified and visible, or hidden
        where the storage still needs it. V(new) makes one more of the same name.
    type: str
    choices: [fail, replace, new]
    default: fail
  import_method:
    description:
      - Has Glance itself do the work. V(web-download) fetches O(url) from Glance's own network; V(copy-image) copies an
        image that is there to the O(stores) that do not hold it yet, which most clouds allow to administrators only.
      - M(imageferry.glance.glance_provider_info) tells which methods and stores a cloud has.
    type: str
    choices: [web-download, copy-image]
  stores:
    description:
      - Ids of the stores that get the image, by default the one that Glance chooses. Only one for an upload from the
        controller; without meaning for an image that is there already, unless O(import_method=copy-image).
    type: list
    elements: str
  timeout:
    description: Seconds that O(import_method) may take.
    type: int
    default: 3600
  progress:
    description: Whether to show a line every few seconds while at least 64 MiB are uploaded, or while Glance imports.
    type: bool
    default: true
  disk_format:
    description: Disk format of the image, such as V(qcow2). Needed to make one, and never changed after.
    type: str
  container_format:
    description: Container format of the image, V(bare) for one that is made. Never changed after.
    type: str
  visibility:
    description: Who may use the image; V(shared) for one that is made. V(public) is often for administrators only.
    type: str
    choices: [public, private, shared, community]
  protected:
    description: Whether the image cannot be removed.
    type: bool
  hidden:
    description: Whether the image is left out of lists. It can still be used by its id.
    type: bool
  active:
    description: V(false) deactivates the image, so that its bytes cannot be downloaded; V(true) reactivates it.
    type: bool
  min_disk:
    description: Smallest disk that the image may be put on, in GiB.
    type: int
  min_ram:
    description: Least memory that a guest of this image needs, in MiB.
    type: int
  tags:
    description: Tags that the image is to have.
    type: list
    elements: str
  properties:
    description:
      - Other properties that the image is to have. A value of null removes a property.
      - Glance keeps texts only. A truth value or number becomes what Python writes for it, V(True) or V(4), as
        C(openstack.cloud) does; lists and dictionaries are refused. Glance's own fields, and names that begin with
        C(os_glance_), are refused, too.
    type: dict
    default: {}
  members:
    description: Ids of the projects that the image is shared with. Only one whose visibility is V(shared) has any.
    type: list
    elements: str
  purge_tags:
    description: Whether O(tags), if given, are all tags that the image is to have.
    type: bool
    default: false
  purge_properties:
    description:
      - Whether O(properties) are all properties that the image is to have, apart from those of Glance itself
        (C(os_glance_…)) and what tools note for themselves (C(owner_specified.…)).
    type: bool
    default: false
  purge_members:
    description: Whether O(members), if given, are all projects that the image is to be shared with.
    type: bool
    default: false
author:
  - ImageFerry contributors (@imageferry)
seealso:
  - module: imageferry.glance.glance_image_info
  - module: imageferry.glance.glance_image_import
extends_documentation_fragment:
  - imageferry.glance._cloud
  - imageferry.glance._attributes
  - imageferry.glance._attributes.cloud
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
  async:
    support: none
"""

EXAMPLES = r"""
- name: Put today's build into Glance, in the place of yesterday's
  imageferry.glance.glance_image:
    cloud: prod
    name: web-golden
    src: /srv/build/web-golden.qcow2
    disk_format: qcow2
    on_existing: replace
    properties:
      os_distro: debian
      hw_qemu_guest_agent: true
    tags: [golden]

- name: Bring an image from its publisher
  imageferry.glance.glance_image:
    cloud: prod
    name: debian-12
    url: https://cloud.debian.org/images/cloud/bookworm/latest/debian-12-genericcloud-amd64.qcow2
    checksum: sha512:https://cloud.debian.org/images/cloud/bookworm/latest/SHA512SUMS
    disk_format: qcow2

- name: Have Glance fetch it
  imageferry.glance.glance_image:
    cloud: prod
    name: installer
    url: https://images.example.com/installer.iso
    disk_format: iso
    import_method: web-download

- name: Share an image with two projects, and no others
  imageferry.glance.glance_image:
    cloud: prod
    name: web-golden
    visibility: shared
    members:
      - 7b1ee2b3d7f84b0c8f2f5a0f2c1d9e11
      - 0c4e939acacf4376bdcd1129f1a054ad
    purge_members: true

- name: Keep anybody from using an image any more
  imageferry.glance.glance_image:
    cloud: prod
    name: debian-10
    active: false
    hidden: true

- name: Copy an image to the store at the edge
  imageferry.glance.glance_image:
    cloud: admin
    id: d8f2b7a4-3b6e-4b1a-9d6c-2f3c1a5b7e90
    import_method: copy-image
    stores: [edge1]

- name: Remove nightly builds of last year
  imageferry.glance.glance_image:
    cloud: prod
    state: absent
    filter:
      name: nightly-*
      tags: [ci]
      created_before: "2026-01-01T00:00:00Z"

- name: Remove an image although it is protected
  imageferry.glance.glance_image:
    cloud: prod
    state: absent
    name: debian-10
    unprotect: true
"""

RETURN = r"""
msg:
  description: What was done.
  returned: always
  type: str
  sample: "Made the image 'web-golden' (1.2 GiB)."
error:
  description: Stable code of the error's cause.
  returned: failure
  type: str
  sample: image_protected
image:
  description:
    - The image as it is now, with the same fields as M(imageferry.glance.glance_image_info) returns. Null in check mode
      where it would be made.
  returned: success, with O(state=present)
  type: dict
  sample: {"id": "d8f2b7a4-3b6e-4b1a-9d6c-2f3c1a5b7e90", "name": "web-golden", "status": "active", "tags": ["golden"]}
images:
  description: The images that were removed, as they were.
  returned: success, with O(state=absent)
  type: list
  elements: dict
candidates:
  description: The images that have the name, each with its C(id), C(name), C(created_at), C(size) and C(status).
  returned: when there are several, and one was meant
  type: list
  elements: dict
diff:
  description:
    - The image's record, size and hash before and after, sorted; never data. With O(state=absent) a list C(images) of
      such records.
  returned: success
  type: dict
  contains:
    before:
      description: What was there; empty where nothing was.
      type: dict
    after:
      description: What is there, or would be.
      type: dict
"""
