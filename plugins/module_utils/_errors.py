# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every way in which this collection fails: one class per cause.

The ``code`` of a class is the stable C(error) of a failed task's result. A message is two sentences: what
happened, and what to do about it. The list in docs/docsite/rst/errors.rst is made from these classes.
"""

from __future__ import annotations

import re
import typing as t


class FerryError(Exception):
    """The base of all errors that a user is meant to read.

    :param what: one sentence on what happened, with the names and numbers that matter, no secret among them.
    :param remedy: one sentence on what to do; the class's own where the cause allows no better one.
    :param facts: plain values that a playbook may want, returned beside C(error) and C(msg).
    """

    code = "internal_error"
    remedy = "This is a fault of imageferry.glance; please report it with the output of -vvv."
    resumable = False
    """Whether what a transfer had brought by then is worth continuing."""

    def __init__(self, what: str, remedy: str | None = None, **facts: t.Any) -> None:
        self.what = what
        self.remedy = remedy or self.remedy
        self.facts = facts
        super().__init__(f"{what} {self.remedy}")

    def result(self) -> dict[str, t.Any]:
        """What a failed task returns: C(error), C(msg) and the facts."""
        return {**self.facts, "error": self.code, "msg": str(self)}

    def to_dict(self) -> dict[str, t.Any]:
        """A form that survives JSON, for L(from_dict)."""
        return {"code": self.code, "what": self.what, "remedy": self.remedy, "facts": self.facts}

    @staticmethod
    def from_dict(data: dict[str, t.Any]) -> FerryError:
        """The error that C(to_dict) described."""
        kind = {cls.code: cls for cls in all_errors()}.get(data["code"], FerryError)
        return kind(data["what"], data["remedy"], **data["facts"])


def all_errors() -> list[type[FerryError]]:
    """Every error class, sorted by its code."""
    found: list[type[FerryError]] = [FerryError]
    for cls in found:
        found.extend(cls.__subclasses__())
    return sorted(set(found), key=lambda cls: cls.code)


def innermost_cause(err: BaseException) -> BaseException:
    """The error below all wrappings of urllib3, requests and keystoneauth."""
    while True:
        inner = getattr(err, "reason", None) or err.__cause__ or err.__context__
        if not isinstance(inner, BaseException):
            return err
        err = inner


def describe_cause(err: BaseException) -> str:
    """What an error comes down to, in a few words without addresses of objects."""
    cause = innermost_cause(err)
    return re.sub(r"<[^>]*>:? ?", "", getattr(cause, "strerror", None) or str(cause) or type(cause).__name__)


# --- the cloud ---------------------------------------------------------------------------------------------------


class CloudNotFound(FerryError):
    """The cloud is neither in a clouds.yaml nor described by the options."""

    code = "cloud_not_found"
    remedy = "Name a cloud of the controller's clouds.yaml (or set OS_CLIENT_CONFIG_FILE), or give 'auth'."


class AuthFailed(FerryError):
    """Keystone refused the credentials."""

    code = "auth_failed"
    remedy = "Check user, password or application credential, project and domains of this cloud."


class AccessDenied(FerryError):
    """The server knows who asks, and refuses."""

    code = "access_denied"
    remedy = "Ask for a role that may do this, or use another cloud entry."


class NoImageService(FerryError):
    """The service catalogue has no image endpoint for this region and interface."""

    code = "no_image_service"
    remedy = "Check 'region_name' and 'interface', or set image_endpoint_override in clouds.yaml."


class TlsUntrusted(FerryError):
    """The server's certificate is not trusted, or is for another host, or has expired."""

    code = "tls_untrusted"
    remedy = "Give the CA's certificate as 'ca_cert', or have the server's certificate mended."


class ConnectionRefused(FerryError):
    """Nothing listens there, the name is unknown, or the network refuses."""

    code = "connection_failed"
    remedy = "Check the address, the service behind it, and the network between."
    resumable = True


class ConnectionTimedOut(FerryError):
    """No answer within the time allowed."""

    code = "connection_timeout"
    remedy = "Check the network between, or raise the time-out."
    resumable = True


class CloudError(FerryError):
    """Keystone or Glance answered with an error of its own."""

    code = "cloud_error"
    remedy = "See the service's log for the request named here."


class MissingDependency(FerryError):
    """A program or Python library is not installed where it is needed."""

    code = "missing_dependency"
    remedy = "Install it."


# --- the image ---------------------------------------------------------------------------------------------------


class ImageNotFound(FerryError):
    """No image has this id or name, or it may not be seen by this user."""

    code = "image_not_found"
    remedy = "List what there is with imageferry.glance.glance_image_info."


class AmbiguousImage(FerryError):
    """Several images have this name."""

    code = "image_ambiguous"
    remedy = "Name the image by its id, or set 'latest: true' for the newest."


class ImageNotReady(FerryError):
    """The image is queued, saving, deactivated or deleted: it has no bytes to give."""

    code = "image_not_ready"
    remedy = "Wait until its upload has ended, or reactivate it."


class UnsupportedFormat(FerryError):
    """A disk or container format that cannot be carried as asked."""

    code = "unsupported_format"
    remedy = "Choose an image in a format that the module's documentation lists."


class FormatMismatch(FerryError):
    """The content is of another format than the one declared for it."""

    code = "format_mismatch"
    remedy = "Do not use this image; upload it again with the disk_format that it really has."


class UnsafeImage(FerryError):
    """The image could make its reader open other files, or break it."""

    code = "unsafe_image"
    remedy = "Do not use this image; if it is your own, flatten it with 'qemu-img convert' and upload it again."


class ImageTooLarge(FerryError):
    """The image's virtual size is beyond the limit that was set."""

    code = "image_too_large"
    remedy = "Raise 'max_virtual_size' if this image is meant to be that large."


class DamagedImage(FerryError):
    """The image is what its server holds, but it is not a whole disk image."""

    code = "image_damaged"
    remedy = "Upload the image again from its source."


class ImageExists(FerryError):
    """An image of this name is there already, with other content."""

    code = "image_exists"
    remedy = "Set 'on_existing: replace' to put the new one in its place, or choose another name."


class ProtectedImage(FerryError):
    """The image is protected against deletion."""

    code = "image_protected"
    remedy = "Set 'unprotect: true' if it is to go all the same."


class ImageConflict(FerryError):
    """The image is in a state in which this cannot be done to it."""

    code = "image_conflict"
    remedy = "See whether somebody else changes, uploads or uses the image, and run again after that."


class QuotaExceeded(FerryError):
    """The image service takes no more: a quota, its limit for one image, or the end of its storage."""

    code = "quota_exceeded"
    remedy = "Remove images that are no longer needed, or ask for a higher quota; glance_provider_info shows it."


class ImportFailed(FerryError):
    """Glance could not bring the image to where it was told to."""

    code = "import_failed"
    remedy = "See that Glance itself may reach the address or the store; its log names the cause."


# --- the transfer ------------------------------------------------------------------------------------------------


class ChecksumMismatch(FerryError):
    """The bytes that arrived are not the bytes that were promised."""

    code = "checksum_mismatch"
    remedy = "Run again; if it fails again, compare the server's own copy with its recorded hash."


class SizeMismatch(FerryError):
    """More or fewer bytes arrived than were promised."""

    code = "size_mismatch"
    remedy = "Run again; if it fails again, check the server and any proxy between."


class Unverifiable(FerryError):
    """Nothing is known that the bytes could be verified against, or nothing better than an md5 of Glance's."""

    code = "unverifiable"
    remedy = "Give a checksum, or set 'allow_unverified: true' to carry the image all the same."


class UploadConflict(FerryError):
    """The image takes no bytes: it has some already, or somebody else is sending them."""

    code = "upload_conflict"
    remedy = "Wait for the other upload to end, or delete the image if none is going on."


class TokenExpired(FerryError):
    """The token expired, and nobody renewed it."""

    code = "token_expired"
    remedy = "Run again, without 'async': with it the token has to live as long as the transfer."
    resumable = True


class TransferFailed(FerryError):
    """The server or the network failed, more often than was to be tried."""

    code = "transfer_failed"
    remedy = "Check the server and the network, or raise 'retries'; an import goes on where this one ended."
    resumable = True


class Abandoned(FerryError):
    """The controller that had started the transfer is gone."""

    code = "abandoned"
    remedy = "Run again; an import goes on where this one ended."
    resumable = True


class TransferLost(FerryError):
    """The process that moved the bytes is gone without a word."""

    code = "transfer_lost"
    remedy = "See whether this host was restarted or ran out of memory, and run again."


class RedirectRefused(FerryError):
    """The server sends the request somewhere it must not go."""

    code = "redirect_refused"
    remedy = "Use the address it redirects to, if you trust it."


# --- the volume --------------------------------------------------------------------------------------------------


class InvalidOption(FerryError):
    """Options that do not make sense, alone or together."""

    code = "invalid_option"
    remedy = "See the module's documentation."


class VolumeExists(FerryError):
    """Something else is there already."""

    code = "volume_exists"
    remedy = "Set 'overwrite: different' to replace it, or choose another place."


class VolumeInUse(FerryError):
    """A guest, a program or another import uses the volume."""

    code = "volume_in_use"
    remedy = "Stop what uses it first."


class HasClones(VolumeInUse):
    """Thin clones stand on the volume."""

    code = "has_clones"
    remedy = "Remove these clones first."


class VolumeNotFound(FerryError):
    """Nothing is there."""

    code = "volume_not_found"
    remedy = "Check the volume's address, or create it with imageferry.glance.volume."


class VolumeInvalid(FerryError):
    """The place is not one where a disk can be put."""

    code = "volume_invalid"
    remedy = "Choose another place."


class NoSpace(FerryError):
    """The storage is full, or a quota or limit is reached."""

    code = "no_space"
    remedy = "Make room, or choose another place."


class StorageError(FerryError):
    """The host's storage reported an error."""

    code = "storage_error"
    remedy = "Check the storage and the kernel's log on this host."


class SourceChanged(FerryError):
    """The disk was written to while it was read."""

    code = "source_changed"
    remedy = "Stop what writes to it, or have it be the disk of a libvirt guest, and run again."


# --- guests ------------------------------------------------------------------------------------------------------


class GuestNotFound(FerryError):
    """This host has no such guest, or the guest no such disk."""

    code = "guest_not_found"
    remedy = "See 'virsh list --all' on this host."


class GuestRunning(VolumeInUse):
    """The guest runs, and was to be left alone."""

    code = "guest_running"
    remedy = "Shut the guest down first, or set 'live: true'."


class TargetTaken(FerryError):
    """The guest has another disk at this target."""

    code = "target_taken"
    remedy = "Choose another target, or leave 'target' out for the next free one."


class AttachedOtherwise(FerryError):
    """The guest has the volume already, but not as it was asked for."""

    code = "attached_otherwise"
    remedy = "Detach it first, or ask for it as it is."


class GuestKeepsDisk(FerryError):
    """The running guest has not let go of the disk in time."""

    code = "guest_keeps_disk"
    remedy = "See that the system in it runs and unmounts the disk, and run again; or shut it down."


class NoCdDrive(FerryError):
    """The guest has no such CD drive."""

    code = "no_cd_drive"
    remedy = "Add a CD drive to the guest's definition, with 'virsh edit'."


class GuestNotRunning(FerryError):
    """The guest is shut off, and this needs one that runs."""

    code = "guest_not_running"
    remedy = "Start the guest first."


class GuestRefused(FerryError):
    """libvirt, QEMU or the guest refuses the change."""

    code = "guest_refused"
    remedy = "See what libvirt says here, and its log on this host."


class BackupRefused(FerryError):
    """libvirt, QEMU or the agent in the guest refuses a backup."""

    code = "backup_refused"
    remedy = "See libvirt's log on this host; another backup, snapshot or migration of the guest may be going on."
