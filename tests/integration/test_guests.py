# SPDX-License-Identifier: GPL-3.0-or-later
"""Disks of guests that run on this machine: looked at, grown, exported. All tests that need libvirt are here."""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.server
import json
import os
import re
import shutil
import signal
import sqlite3
import stat
import subprocess
import tempfile
import threading
import time
import types
from pathlib import Path

import pytest
import sample_images
import yaml
from ansible_collections.imageferry.glance.plugins.module_utils._volume.file import FileVolume
from conftest import (
    HOST_PYTHON,
    MIB,
    Playbook,
    download,
    kill_with_all_that_it_started,
    listed,
    qemu_img,
    record,
    running_cloud,
    small_folder,
    upload,
    virtual_size,
    wait_for,
)

OWN = ("vda", "vdb", "vdc", "hdc")  # what the guest has from the beginning
RUN = Path("/run/libvirt/qemu")
BACKUPS = Path("/var/lib/imageferry/backups")
GUEST_BLOCK = "/machine/peripheral/virtio-disk{}/virtio-backend"


def virsh(*arguments, check=True):
    command = ["virsh", "-q", "-c", "qemu:///system", *map(str, arguments)]
    return subprocess.run(command, check=check, capture_output=True, text=True)


@pytest.fixture(scope="session")
def libvirt():
    """A libvirt that runs, for the tests alone where none did."""
    if not shutil.which("libvirtd") or not shutil.which("virsh"):
        pytest.skip("libvirt is not installed")
    if subprocess.run([HOST_PYTHON, "-c", "import libvirt"], capture_output=True, check=False).returncode:
        pytest.skip("python3-libvirt is not installed")
    started = []
    if virsh("version", check=False).returncode:
        if os.geteuid() != 0:
            pytest.skip("libvirt does not run, and starting it needs root")
        started = [subprocess.Popen([program], stderr=subprocess.DEVNULL) for program in ("virtlogd", "libvirtd")]
    try:
        wait_for(lambda: virsh("version", check=False).returncode == 0)
        yield
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait()


def define(name, folder, disks, boots=False):
    """Has libvirt know a guest, whose disks are files of the folder with their formats, and with a CD drive, hdc.

    :param boots: whether its BIOS sees the disks, which it does of those that it may boot from.
    """
    described = ""
    for order, (target, (file, image_format)) in enumerate(disks.items(), 1):
        described += (
            f"<disk type='file' device='disk'><driver name='qemu' type='{image_format}'/>"
            f"<source file='{folder / file}'/><target dev='{target}' bus='virtio'/>"
        )
        described += f"<boot order='{order}'/></disk>" if boots else "</disk>"
    described += "<disk type='file' device='cdrom'><target dev='hdc' bus='ide'/><readonly/></disk>"
    (folder / "guest.xml").write_text(
        f"<domain type='qemu'><name>{name}</name><memory unit='MiB'>64</memory>"
        f"<os><type arch='x86_64'>hvm</type></os><features><acpi/></features><devices>{described}</devices></domain>"
    )
    virsh("define", folder / "guest.xml")


@pytest.fixture(scope="session")
def guest(libvirt):
    """A running guest with the disks C(raw), C(qcow2) and C(overlay), which is laid over C(base).

    It has nothing to boot, and keeps its disks open. There is one for all tests, as libvirt may look at QEMU anew for
    every guest that is defined, which takes long where there is a KVM that does not work.
    """
    # QEMU has to reach the folder as its own user.
    folder = Path(tempfile.mkdtemp(prefix="imageferry-test-", dir="/var/tmp"))
    folder.chmod(0o755)
    for name in ("raw", "qcow2", "base"):
        qemu_img("create", "-f", "raw" if name == "raw" else "qcow2", folder / name, "8M")
    qemu_img("create", "-f", "qcow2", "-b", folder / "base", "-F", "qcow2", folder / "overlay")
    name = f"imageferry-test-{os.getpid()}"
    define(name, folder, {"vda": ("raw", "raw"), "vdb": ("qcow2", "qcow2"), "vdc": ("overlay", "qcow2")})
    try:
        started = virsh("start", name, check=False)
        if started.returncode:
            pytest.skip(f"no guest can be started here: {started.stderr.strip()}")
        yield types.SimpleNamespace(name=name, folder=folder)
    finally:
        virsh("destroy", name, check=False)
        virsh("undefine", name, check=False)
        shutil.rmtree(folder)


def test_the_disks_of_a_guest_are_listed(play, guest):
    found = play("guest_disk_info", f"guest: {guest.name}")
    assert found["guest"]["name"] == guest.name and found["guest"]["running"] and not found["changed"]
    common = {"bus": "virtio", "device": "disk", "read_only": False}
    drive = {"target": "hdc", "bus": "ide", "device": "cdrom", "path": None, "format": None, "read_only": True}
    assert found["disks"] == [
        {"target": "vda", "path": str(guest.folder / "raw"), "format": "raw", **common},
        {"target": "vdb", "path": str(guest.folder / "qcow2"), "format": "qcow2", **common},
        {"target": "vdc", "path": str(guest.folder / "overlay"), "format": "qcow2", **common},
        drive,
    ]
    assert play("guest_disk_info", f"guest: {found['guest']['uuid']}")["disks"] == found["disks"]
    assert play("guest_disk_info", "guest: nobody")["error"] == "guest_not_found"


@pytest.mark.parametrize(("image_format", "target"), [("raw", "vda"), ("qcow2", "vdb")])
def test_a_running_guest_sees_its_disk_grow(play, guest, image_format, target):
    path = guest.folder / image_format
    volume = play("volume_info", f"path: {path}\ncheck: true")["volume"]
    assert (volume["format"], volume["format_source"]) == (image_format, "guest")
    assert volume["guests"] == [
        {"guest": guest.name, "running": True, "target": target, "format": image_format, "read_only": False,
         "backing": False}
    ]  # fmt: skip
    assert volume["in_use"] and volume["health"]["checked"] is False

    task = f"path: {path}\nsize: 16MiB"
    predicted, grown = play("volume_extend", task, check=True), play("volume_extend", task)
    assert grown["changed"] and grown["diff"] == predicted["diff"] and guest.name in grown["msg"]
    assert virtual_size(path, image_format) == 16 * MIB
    assert str(16 * MIB) in virsh("domblkinfo", guest.name, target).stdout
    assert not play("volume_extend", task)["changed"]
    assert play("volume", f"path: {path}\nstate: absent")["error"] == "volume_in_use" and path.exists()


def test_what_a_running_guest_stands_on_is_not_grown_but_cloned(play, guest):
    base, overlay = guest.folder / "base", guest.folder / "overlay"
    refused = play("volume_extend", f"path: {base}\nformat: qcow2\nsize: 16MiB")
    assert refused["error"] == "volume_in_use" and virtual_size(base, "qcow2") == 8 * MIB
    assert play("volume_info", f"path: {base}")["volume"]["guests"][0]["backing"] is True
    assert play("volume", f"path: {overlay}2\nclone_of: {{path: {base}, format: qcow2}}")["changed"]
    assert play("volume", f"path: {overlay}3\nclone_of: {{path: {overlay}, format: qcow2}}")["error"] == "volume_in_use"


def write_in_guest(guest, number, *commands):
    """Has QEMU write to a disk of a running guest, as the guest would."""
    for command in commands:
        virsh("qemu-monitor-command", guest.name, "--hmp", f'qemu-io -d {GUEST_BLOCK.format(number)} "{command}"')


def test_a_running_guest_is_exported_at_one_moment(export, glance, guest, tmp_path):
    write_in_guest(guest, 0, "write -P 1 0 1M")
    write_in_guest(guest, 2, "write -P 1 0 1M")
    wanted = [{"disk": "vda", "name": "live-a"}, {"disk": "vdc", "name": "live-c"}]
    task = yaml.safe_dump({"domain": guest.name, "disks": wanted, "format": "raw", "rate_limit": "4MiB"})
    run = export.start(task)
    wait_for(lambda: any(image["status"] == "saving" for image in listed(glance, "live-a")))
    write_in_guest(guest, 0, "write -P 2 0 8M")
    write_in_guest(guest, 2, "write -P 2 0 8M")
    made = export.finish(run)
    assert made["changed"] and [disk["disk"] for disk in made["disks"]] == ["vda", "vdc"], made
    for name in ("live-a", "live-c"):
        (image,) = listed(glance, name)
        copy = download(glance, record(glance, image), tmp_path / name)
        assert copy.read_bytes().rstrip(b"\0") == b"\1" * MIB
    assert not list(guest.folder.glob(".imageferry*")) and "None" in virsh("domjobinfo", guest.name).stdout

    assert export(yaml.safe_dump({"domain": guest.name, "disks": wanted}))["changed"]
    assert not export(yaml.safe_dump({"domain": guest.name, "disks": wanted}))["changed"]
    for name in ("live-a", "live-c"):
        assert len(listed(glance, name)) == 1


def test_what_a_killed_export_leaves_of_a_backup_is_ended_by_the_next(export, glance, guest):
    write_in_guest(guest, 0, "write -P 3 0 8M")
    task = f"domain: {guest.name}\ndisk: vda\nname: killed-live\nformat: raw"
    run = export.start(f"{task}\nrate_limit: 1MiB")
    wait_for(lambda: any(image["status"] == "saving" for image in listed(glance, "killed-live")))
    kill_with_all_that_it_started(run)
    assert list(guest.folder.glob(".imageferry*")), "QEMU still keeps what the guest overwrites"
    assert export(task)["changed"]
    assert [image["status"] for image in listed(glance, "killed-live")] == ["active"]
    assert not list(guest.folder.glob(".imageferry*")) and "None" in virsh("domjobinfo", guest.name).stdout


HELD = """
import json, os, signal, sys
import libvirt
from ansible_collections.imageferry.glance.plugins.module_utils._errors import FerryError
from ansible_collections.imageferry.glance.plugins.module_utils._libvirt import backup

class WithAgent:
    '''The guest, as if an agent in it froze and thawed the file systems, which is what a file says.'''

    def __init__(self, domain, ice, killed=None, failures=0, endless=False):
        self._domain, self._ice, self._killed, self._failures = domain, ice, killed, failures
        if endless:
            self.abortJob = lambda: None

    def __getattr__(self, name):
        return getattr(self._domain, name)

    def fsFreeze(self):
        open(self._ice, "x").close()
        self.reach("frozen")

    def fsThaw(self):
        self._failures -= 1
        if self._failures >= 0:
            raise libvirt.libvirtError("the agent is away")
        if os.path.exists(self._ice):
            os.unlink(self._ice)

    def reach(self, point):
        if self._killed == point:
            os.kill(os.getpid(), signal.SIGKILL)

name, path, ice, scratch_dir, options = json.loads(sys.argv[1])
backup._THAW_TIMEOUT = backup._END_TIMEOUT = 0.5
domain = WithAgent(libvirt.open("qemu:///system").lookupByName(name), ice, **options)
try:
    with backup.backup(domain, [backup.LiveDisk("vda", path)], "always", scratch_dir) as held:
        domain.reach("held")
    print(json.dumps({"quiesced": held.quiesced}))
except FerryError as err:
    print(json.dumps(err.result()))
"""


@pytest.fixture
def hold(guest, libraries, tmp_path):
    """Holds the guest's disk vda for a moment, its file systems frozen before."""
    ice = tmp_path / "frozen"

    def hold(scratch_dir=None, **options):
        asked = json.dumps([guest.name, str(guest.folder / "raw"), str(ice), scratch_dir and str(scratch_dir), options])
        run = subprocess.run([HOST_PYTHON, "-c", HELD, asked], env={**os.environ, "PYTHONPATH": str(libraries)},
                             capture_output=True, text=True, check=False)  # fmt: skip
        assert run.returncode == (-signal.SIGKILL if "killed" in options else 0), run.stderr
        return json.loads(run.stdout or "null")

    hold.ice = ice
    yield hold
    hold()
    assert not list(guest.folder.glob(".imageferry*")) and "None" in virsh("domjobinfo", guest.name).stdout
    assert not [*BACKUPS.glob("*"), *RUN.glob("imageferry-backup-*")]


def test_a_guest_is_thawed_in_the_end(hold):
    hold(killed="frozen")
    assert hold.ice.exists()
    assert hold() == {"quiesced": True} and not hold.ice.exists(), "the next run thaws it"
    assert hold(failures=3) == {"quiesced": True} and not hold.ice.exists()

    failed = hold(failures=1000)
    assert failed["error"] == "backup_refused" and "virsh domfsthaw" in failed["msg"] and hold.ice.exists()
    assert hold(failures=1000)["error"] == "backup_refused"
    hold.ice.unlink()
    assert hold() == {"quiesced": True}, "what cannot be told apart from a guest that was thawed is said once"


def test_a_backup_that_does_not_end_is_ended_by_the_next(hold):
    assert hold(endless=True) == {"quiesced": True}
    failed = hold(endless=True)
    assert failed["error"] == "backup_refused" and "virsh domjobabort" in failed["msg"]
    assert hold() == {"quiesced": True}


def test_a_power_cut_leaves_no_scratch_file_for_long(hold, guest, tmp_path):
    hold(killed="held")
    (folder,) = RUN.glob("imageferry-backup-*")
    victim = tmp_path / "victim"
    victim.touch()
    claim = {"guest": virsh("domuuid", guest.name).stdout.strip(), "scratch": [str(victim)]}
    (folder / "claim").write_text(json.dumps(claim))  # which QEMU's user can write
    assert hold() == {"quiesced": True} and victim.exists()

    hold(killed="held")
    (scratch,) = guest.folder.glob(".imageferry*")
    virsh("domjobabort", guest.name)
    wait_for(lambda: "None" in virsh("domjobinfo", guest.name).stdout)
    shutil.rmtree(*RUN.glob("imageferry-backup-*"))
    scratch.touch()
    assert hold() == {"quiesced": True} and not scratch.exists()


def test_a_scratch_folder_that_is_too_small_is_refused_before(hold, guest, tmp_path):
    write_in_guest(guest, 0, "write -P 3 0 8M")
    with small_folder(tmp_path / "small", "512k") as folder:
        failed = hold(folder)
    assert failed["error"] == "no_space" and str(folder) in failed["msg"] and "'scratch_dir'" in failed["msg"]
    assert hold(tmp_path / "nowhere")["error"] == "invalid_option"


@pytest.fixture
def counting_guest(libvirt):
    """A guest that does nothing but count, on its disk vda and then on vdb."""
    folder = Path(tempfile.mkdtemp(prefix="imageferry-test-", dir="/var/tmp"))
    folder.chmod(0o755)
    shutil.copy(sample_images.counting_raw(), folder / "vda")
    qemu_img("create", "-f", "qcow2", folder / "vdb", "8M")
    name = f"imageferry-counting-{os.getpid()}"
    define(name, folder, {"vda": ("vda", "raw"), "vdb": ("vdb", "qcow2")}, boots=True)
    try:
        virsh("start", name)
        yield types.SimpleNamespace(name=name, folder=folder)
    finally:
        virsh("destroy", name, check=False)
        virsh("undefine", name, check=False)
        shutil.rmtree(folder)


def counted(path):
    with path.open("rb") as disk:
        disk.seek(sample_images.COUNTER_POSITION)
        return int.from_bytes(disk.read(4), "little")


def test_all_disks_of_a_guest_that_writes_are_of_the_same_moment(export, glance, counting_guest, tmp_path):
    wait_for(lambda: counted(counting_guest.folder / "vda") > 10)
    disks = [{"disk": "vda", "name": "counted-a"}, {"disk": "vdb", "name": "counted-b"}]
    task = yaml.safe_dump({"domain": counting_guest.name, "disks": disks, "format": "raw", "rate_limit": "8MiB"})
    for _round in range(3):
        made = export(task)
        assert made["changed"], made
        copies = [
            download(glance, record(glance, listed(glance, disk["name"])[0]), tmp_path / disk["disk"]) for disk in disks
        ]
        first, second = map(counted, copies)
        assert first - second in (0, 1) and second > 0, "each number is written to vda, and then to vdb"
        assert counted(counting_guest.folder / "vda") > first, "the guest went on counting meanwhile"


def test_a_guest_has_one_row_by_whichever_name(export, guest, tmp_path):
    (tmp_path / "other").write_bytes(bytes(MIB))
    uuid = virsh("domuuid", guest.name).stdout.strip()
    for domain, day in ((guest.name, 1), (uuid, 2)):
        task = f"set: rows\ndomain: {domain}\ndisks: [vda]\ntime: '2026-01-0{day}'"
        assert export(task, module="volume_backup")["labels"] == [f"{guest.name}/vda"]
    other = f"set: rows\npath: {tmp_path}/other\nsource_format: raw\nlabel: {guest.name}/lv"
    assert export(other, module="volume_backup")["changed"]
    found = export(f"set: rows\nguest: {guest.name}", module="backup_info")["backups"]
    assert [(point["guest"], point["disk"]) for point in found] == [(guest.name, f"{guest.name}/vda")]


def test_no_disk_of_several_is_shown_before_all_are_verified(export, glance, project, guest):
    task = yaml.safe_dump({"domain": guest.name, "disks": [
        {"disk": "vda", "name": "sound"}, {"disk": "vdb", "name": "unverified"}]})  # fmt: skip
    is_odd = "NEW.name = 'unverified' AND NEW.os_hash_algo = 'sha512'"
    change = "UPDATE images SET os_hash_algo = 'unheard-of', checksum = NULL WHERE id = NEW.id"
    with contextlib.closing(sqlite3.connect(project.glance.folder / "glance.db")) as database:
        database.execute(f"CREATE TRIGGER odd AFTER UPDATE ON images WHEN {is_odd} BEGIN {change}; END")
        try:
            refused = export(task)
        finally:
            database.execute("DROP TRIGGER odd")
    assert refused["error"] == "unverifiable" and not listed(glance, "sound") + listed(glance, "unverified"), refused


def test_a_running_guest_may_be_left_alone(export, glance, guest):
    refused = export(f"path: {guest.folder}/qcow2\nname: off\nlive: false")
    assert refused["error"] == "guest_running" and not listed(glance, "off")
    assert export(f"domain: {guest.name}\ndisk: vdx\nname: off")["error"] == "guest_not_found"
    refused = export(f"domain: {guest.name}\ndisk: vda\nname: off\nquiesce: always")
    assert refused["error"] == "backup_refused" and not listed(glance, "off")


ISOS = {"ipxe": sample_images.iso, "grub": sample_images.grub_rescue_iso}


@pytest.fixture(scope="session")
def isos(guest):
    """ISOs on the host, by name."""
    return {name: Path(shutil.copy(sample(), guest.folder / f"{name}.iso")) for name, sample in ISOS.items()}


def in_drive(guest, *options):
    listed = virsh("domblklist", guest.name, *options).stdout.splitlines()
    return dict(map(str.split, listed))["hdc"]


def test_an_iso_is_inserted_replaced_and_ejected(play, guest, isos):
    for iso in isos.values():
        task = f"guest: {guest.name}\npath: {iso}"
        predicted, inserted, again = (play("guest_cdrom", task, check=check) for check in (True, False, False))
        assert inserted.get("changed"), inserted["msg"]
        assert predicted["diff"] == inserted["diff"] and not again["changed"]
        assert in_drive(guest) == in_drive(guest, "--inactive") == str(iso) == inserted["medium"]["path"]
        assert read_in_guest(guest, 32768, iso)
    qmp(guest, "blockdev-open-tray", id="ide0-1-0")
    wait_for(lambda: "tray='open'" in virsh("dumpxml", guest.name).stdout)
    assert play("guest_cdrom", task)["changed"] and read_in_guest(guest, 32768, iso)
    ejecting = f"guest: {guest.name}\nstate: ejected"
    predicted, ejected, again = (play("guest_cdrom", ejecting, check=check) for check in (True, False, False))
    assert ejected["changed"] and predicted["diff"] == ejected["diff"]
    assert not again["changed"], (again, virsh("dumpxml", guest.name).stdout)
    assert in_drive(guest) == in_drive(guest, "--inactive") == "-"


def test_only_a_disc_is_put_into_a_drive_that_is_there(play, guest, isos):
    def error(task):
        return play("guest_cdrom", f"guest: {guest.name}\n{task}", check=True).get("error")

    no_drive = play("guest_cdrom", f"guest: {guest.name}\ntarget: vda\npath: {isos['ipxe']}")
    assert no_drive["error"] == "no_cd_drive" and "hdc" in no_drive["msg"]
    assert error(f"path: {guest.folder}/none.iso") == "volume_not_found"
    assert error(f"path: {guest.folder}/qcow2") == "unsupported_format"


def qmp(guest, command, **arguments):
    asked = json.dumps({"execute": command, "arguments": arguments})
    return json.loads(virsh("qemu-monitor-command", guest.name, asked).stdout)["return"]


def read_in_guest(guest, offset, iso):
    """Whether a running guest's QEMU reads from the CD drive what is in the ISO."""
    (folder,) = Path("/var/lib/libvirt/qemu").glob(f"domain-{virsh('domid', guest.name).stdout.strip()}-*")
    (drive,) = (block for block in qmp(guest, "query-block") if "ide0-1-0" in block["qdev"])
    qmp(guest, "nbd-server-start", addr={"type": "unix", "data": {"path": f"{folder}/cd"}})
    try:
        export = {"type": "nbd", "id": "cd", "name": "cd", "node-name": drive["inserted"]["node-name"]}
        qmp(guest, "block-export-add", **export)
        uri = f"nbd+unix:///cd?socket={folder}/cd"
        command = ["qemu-io", "-r", "-f", "raw", "-c", f"read -v {offset} 512", uri]
        said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    finally:
        qmp(guest, "nbd-server-stop")
    shown = "".join(line.split(":")[1][:49] for line in said.splitlines() if re.match("[0-9a-f]{8}:", line))
    return bytes.fromhex(shown.replace(" ", "")) == iso.read_bytes()[offset : offset + 512]


@pytest.fixture(scope="module")
def discs(project, isos, tmp_path_factory):
    """The cloud, with the ISOs in it."""
    for name, path in isos.items():
        upload(project, name, path, "iso")
    blank = tmp_path_factory.mktemp("blank") / "disk"
    blank.write_bytes(bytes(MIB))
    upload(project, "no-iso", blank, "raw")
    return project


class Disc:
    """Has an image be in the guest's drive, as a user does."""

    def __init__(self, folder, cloud, guest):
        self._playbook = Playbook(folder, cloud, host_python=HOST_PYTHON)
        self._guest = guest
        self.finish = self._playbook.finish

    def start(self, task, *arguments):
        return self._playbook.start(f"guest: {self._guest.name}\n{task}", *arguments, module="guest_cdrom")

    def __call__(self, task, *arguments):
        return self.finish(self.start(task, *arguments))


@pytest.fixture
def disc(discs, guest, tmp_path):
    disc = Disc(tmp_path / "play", discs, guest)
    yield disc
    disc("state: ejected")


def serving():
    return [path for path in Path("/run/libvirt/qemu").glob("imageferry-cdrom-*") if path.is_dir()]


def test_a_guest_reads_an_image_where_glance_holds_it(disc, guest, isos):
    task = "cloud: demo\nimage: ipxe"
    assert not serving()
    predicted = disc(task, "--check")
    inserted = disc(task)
    assert inserted.get("changed"), inserted["msg"]
    assert (
        predicted["changed"] and predicted["diff"] == inserted["diff"] and inserted["medium"]["image"]["name"] == "ipxe"
    )
    assert read_in_guest(guest, 0, isos["ipxe"])
    assert in_drive(guest, "--inactive") == "-"
    (folder,) = serving()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) & 0o077 for path in folder.iterdir()} == {0}
    assert not [path for path in Path("/proc").glob("[0-9]*/cmdline") if b"gAAAA" in read(path)]

    (folder / "token").write_text("refused, as one that has expired")
    renewed = disc(f"{task}\nstate: renewed")
    assert renewed["changed"] is False and renewed["inserted"] and "A new token was handed out" in renewed["msg"]
    assert read_in_guest(guest, MIB, isos["ipxe"])
    (folder / "token").write_text("refused, as one that has expired")
    assert disc(task)["changed"] is False and "refused" not in (folder / "token").read_text()

    os.kill(int((folder / "pid").read_text()), signal.SIGKILL)
    again = disc(task)
    assert again["changed"] and "served again" in again["msg"]
    wait_for(lambda: read_in_guest(guest, 3 * MIB // 2, isos["ipxe"]))  # its QEMU connects again as it reads

    other = disc("cloud: demo\nimage: grub")
    assert other["diff"]["before"]["image"]["name"] == "ipxe" and read_in_guest(guest, 2 * MIB, isos["grub"])
    assert serving() != [folder] and len(serving()) == 1
    assert disc(f"path: {isos['ipxe']}")["changed"] and not serving() and read_in_guest(guest, MIB, isos["ipxe"])
    assert disc("state: ejected")["changed"] and in_drive(guest) == "-"
    for options in ([], ["--check"]):
        left = disc(f"{task}\nstate: renewed", *options)
        assert not left["changed"] and not left["inserted"] and "is not in" in left["msg"] and in_drive(guest) == "-"
    assert disc(f"path: {isos['ipxe']}\nstate: renewed")["error"] == "invalid_option"
    assert disc("cloud: demo\nimage: no-iso")["error"] == "unsupported_format"
    assert disc("cloud: demo")["error"] == "invalid_option"


@pytest.fixture
def on_host(libraries):
    """Runs a piece of Python as a host does, and returns what it prints."""

    def on_host(program, *arguments):
        return subprocess.run(
            [HOST_PYTHON, "-c", program, *arguments], env={**os.environ, "PYTHONPATH": str(libraries)}, check=True,
            capture_output=True, text=True,
        ).stdout  # fmt: skip

    return on_host


SERVED = """
import socket, sys
import libvirt
from ansible_collections.imageferry.glance.plugins.module_utils._errors import TransferFailed
from ansible_collections.imageferry.glance.plugins.module_utils._libvirt.served_disc import Disc, ServedDisc
guest, url = sys.argv[1:]
place = ServedDisc(libvirt.open("qemu:///system").lookupByName(guest), "hdc", "an-id", "disc")
socket.socket(socket.AF_UNIX).bind(place.claim.socket)
try:
    place.serve(Disc("an-id", "disc", url, 1 << 20, True, "token", {}))
except TransferFailed as err:
    print(err.what)
"""


def test_what_a_killed_server_left_is_not_taken_for_the_next_one(guest, on_host):
    class Slow(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            time.sleep(0.5)
            self.send_error(404)

        def log_message(self, *_arguments):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Slow) as glance:
        threading.Thread(target=glance.serve_forever).start()
        try:
            assert "Glance answered 404" in on_host(SERVED, guest.name, f"http://127.0.0.1:{glance.server_port}/")
        finally:
            glance.shutdown()
    assert not serving()


def test_a_token_is_renewed_for_a_while(guest, isos, tmp_path):
    with running_cloud(tmp_path / "cloud", token_lifetime=10) as cloud:
        upload(cloud, "ipxe", isos["ipxe"], "iso")
        disc = Disc(tmp_path / "play", cloud, guest)
        run = disc.start("cloud: demo\nimage: ipxe\nrenew_for: 300")
        tokens = set()

        def renewed():
            tokens.update(read(folder / "token") for folder in serving())
            return len(tokens - {b""}) > 2

        wait_for(renewed)
        assert read_in_guest(guest, MIB, isos["ipxe"]) and run.poll() is None
        virsh("change-media", guest.name, "hdc", "--eject", "--live")
        begun = time.monotonic()
        ended = disc.finish(run)
        assert ended["changed"] and ended["inserted"] is False and time.monotonic() - begun < 60
        assert disc("state: ejected")["changed"] is False and not serving()


def read(path):
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.fixture
def spare(guest, play):
    """Disks that no guest has: two blank ones, a qcow2 of this collection's making, and a foreign one."""
    for name in ("spare", "other", "known", "foreign"):
        (guest.folder / name).unlink(missing_ok=True)
    for name in ("spare", "other"):
        qemu_img("create", "-f", "raw", guest.folder / name, "1M")
    play("volume", f"path: {guest.folder}/known\nformat: qcow2\nsize: 1MiB")
    qemu_img("create", "-f", "qcow2", guest.folder / "foreign", "1M")
    yield guest.folder
    for target in {**disks_of(guest), **disks_of(guest, "--inactive")}:
        virsh("detach-disk", guest.name, target, "--config", check=False)
        virsh("detach-disk", guest.name, target, "--live", check=False)


@pytest.fixture
def sharing(guest, spare):
    """A second running guest, which shares its only disk with the first."""
    name = f"imageferry-sharing-{os.getpid()}"
    (spare / "sharing").mkdir()
    define(name, spare / "sharing", {})
    share = ["--targetbus", "usb", "--mode", "shareable"]
    try:
        for owner, plane in ((name, "--config"), (guest.name, "--live")):
            virsh("attach-disk", owner, spare / "spare", "sda", plane, *share)
        virsh("start", name)
        yield name
    finally:
        virsh("destroy", name, check=False)
        virsh("undefine", name, check=False)
        shutil.rmtree(spare / "sharing")


def test_a_disk_that_another_guest_writes_to_is_not_exported(export, glance, guest, spare, sharing):
    both_run = export(f"path: {spare}/spare\nsource_format: raw\nname: shared")
    virsh("destroy", sharing)
    other_runs = export(f"domain: {sharing}\ndisk: sda\nname: shared")
    for refused in (both_run, other_runs):
        assert refused["error"] == "volume_in_use" and guest.name in refused["msg"], refused
    assert not listed(glance, "shared") and export(f"domain: {guest.name}\ndisk: sda\nname: shared")["changed"]


def disks_of(guest, *options):
    listed = virsh("domblklist", guest.name, *options).stdout.splitlines()
    return {target: path for target, path in map(str.split, listed) if target not in OWN}


def change(play, task):
    """Runs the task guest_disk after it was predicted, and again to see that there is nothing left to do."""
    predicted, changed, again = (play("guest_disk", task, check=check) for check in (True, False, False))
    assert changed.get("changed"), changed["msg"]
    assert (predicted["changed"], predicted["diff"], predicted["disk"]) == (True, changed["diff"], changed["disk"])
    assert again["changed"] is False and again["diff"]["before"] == again["diff"]["after"] == changed["diff"]["after"]
    return changed


def test_a_running_guest_gets_a_disk_and_lets_it_go(play, guest, spare):
    task = f"guest: {guest.name}\npath: {spare}/known\nbus: usb"
    attached = change(play, task)
    assert attached["disk"] == {"target": "sda", "bus": "usb", "device": "disk", "path": f"{spare}/known",
                                "format": "qcow2", "read_only": False}  # fmt: skip
    assert disks_of(guest) == disks_of(guest, "--inactive") == {"sda": f"{spare}/known"}
    assert play("volume_info", f"path: {spare}/known")["volume"]["format_source"] == "provenance"

    virsh("detach-disk", guest.name, "sda", "--config")
    completed = play("guest_disk", task)
    assert completed["changed"] and "in its definition" in completed["msg"] and disks_of(guest, "--inactive")

    change(play, f"guest: {guest.name}\ntarget: sda\nstate: detached")
    assert disks_of(guest) == disks_of(guest, "--inactive") == {} and (spare / "known").exists()


def test_a_disk_is_detached_from_wherever_the_guest_has_it(play, guest, spare):
    for path, target, plane in (("spare", "sda", "--live"), ("other", "sda", "--config"), ("spare", "sdb", "--config")):
        virsh("attach-disk", guest.name, spare / path, target, plane, "--targetbus", "usb")
    change(play, f"guest: {guest.name}\npath: {spare}/spare\nstate: detached")
    assert disks_of(guest) == {} and disks_of(guest, "--inactive") == {"sda": f"{spare}/other"}


def test_a_disk_that_is_attached_meanwhile_is_attached_once(play, guest, spare):
    task = f"guest: {guest.name}\npath: {spare}/spare\nbus: usb"
    with FileVolume(f"{spare}/spare") as volume, concurrent.futures.ThreadPoolExecutor() as others:
        with volume.locked(0):
            late = others.submit(play, "guest_disk", task)
            time.sleep(1)  # nothing shows that it waits; should it not do so yet, it has nothing to do either
            virsh("attach-disk", guest.name, spare / "spare", "sda", "--persistent", "--targetbus", "usb")
        assert late.result().get("changed") is False and disks_of(guest) == {"sda": f"{spare}/spare"}, late.result()


def test_a_disk_that_is_somebody_elses_is_not_attached(play, guest, spare, counting_guest):
    def error(task):
        return play("guest_disk", f"guest: {guest.name}\nbus: usb\n{task}", check=True).get("error")

    assert error(f"path: {spare}/spare\ntarget: vda") == "target_taken"
    assert error(f"path: {spare}/spare\ntarget: ../a") == "invalid_option"
    assert error(f"path: {spare}/none") == "volume_not_found"
    assert error(f"path: {spare}/foreign") == "volume_invalid"
    assert error(f"path: {spare}/foreign\nformat: qcow2") is None
    assert error(f"path: {spare}/foreign\nformat: raw") is None
    assert error(f"path: {counting_guest.folder}/vda") == "volume_in_use"
    assert error(f"path: {counting_guest.folder}/vda\nread_only: true") == "volume_in_use"
    virsh("destroy", counting_guest.name)
    assert error(f"path: {counting_guest.folder}/vda") == "volume_in_use"
    assert error(f"path: {guest.folder}/base") == "volume_in_use"
    with (spare / "other").open("rb"):
        assert error(f"path: {spare}/other") == "volume_in_use"
        assert error(f"path: {spare}/other\nread_only: true") is None
    assert error(f"path: {guest.folder}/raw") == "attached_otherwise"
    assert error(f"path: {guest.folder}/raw\nstate: detached\ntarget: vdb") == "target_taken"


def test_a_guest_that_holds_on_to_its_disk_is_told_of(play, guest, spare):
    assert change(play, f"guest: {guest.name}\npath: {spare}/other")["disk"]["target"] == "vdd"
    for _run in range(2):
        kept = play("guest_disk", f"guest: {guest.name}\npath: {spare}/other\nstate: detached\ntimeout: 1")
        assert kept["error"] == "guest_keeps_disk" and disks_of(guest), kept["msg"]


FOUND = """
import json, sys
import libvirt
from ansible_collections.imageferry.glance.plugins.module_utils._errors import FerryError
from ansible_collections.imageferry.glance.plugins.module_utils._export.subject import Rules, subjects
from ansible_collections.imageferry.glance.plugins.module_utils._libvirt.guests import find_guests
name, path = sys.argv[1:]
connection = libvirt.open("qemu:///system")
print(json.dumps([disk.target for disk in find_guests(connection, path)]))
try:
    rules = Rules(None, None, True, True, "never", None)
    with subjects({"domain": name, "disk": "sda", "disks": None}, rules, connection, None):
        pass
except FerryError as err:
    print(err.what)
"""


def test_a_logical_volume_that_is_not_active_is_the_guests_all_the_same(libvirt, on_host, tmp_path):
    name, path = f"imageferry-off-{os.getpid()}", "/dev/imageferry-none/lv"
    define(name, tmp_path, {})
    try:
        virsh("attach-disk", name, path, "sda", "--config", "--sourcetype", "block", "--targetbus", "usb")
        found, refused = on_host(FOUND, name, path).splitlines()
    finally:
        virsh("undefine", name)
    assert json.loads(found) == ["sda"] and refused == f"There is no device {path}."


def test_the_disk_of_a_guest_that_is_off_grows(play, guest):
    path = guest.folder / "qcow2"
    virsh("destroy", guest.name)
    volume = play("volume_info", f"path: {path}")["volume"]
    assert volume["in_use"] is None and [disk["running"] for disk in volume["guests"]] == [False]
    assert play("volume_extend", f"path: {path}\nsize: 32MiB")["changed"] and virtual_size(path, "qcow2") == 32 * MIB


def test_a_guest_that_is_off_has_a_disk_from_its_next_start(play, guest, spare):
    virsh("destroy", guest.name, check=False)
    task = f"guest: {guest.name}\npath: {spare}/spare\ntarget: vdf\nread_only: true"
    assert change(play, task)["disk"]["read_only"] is True
    assert disks_of(guest) == {"vdf": f"{spare}/spare"}
    change(play, f"guest: {guest.name}\npath: {spare}/spare\nstate: detached")
    assert disks_of(guest) == {} and (spare / "spare").exists()


def test_a_guest_that_is_off_has_an_iso_from_its_next_start(play, disc, guest, isos):
    virsh("destroy", guest.name, check=False)
    assert disc("cloud: demo\nimage: ipxe")["error"] == "guest_not_running"
    assert disc("cloud: demo\nimage: ipxe\nstate: renewed")["changed"] is False
    assert play("guest_cdrom", f"guest: {guest.name}\npath: {isos['grub']}")["changed"]
    assert in_drive(guest) == str(isos["grub"])
    assert play("guest_cdrom", f"guest: {guest.name}\nstate: ejected")["changed"] and in_drive(guest) == "-"


def test_an_image_that_is_listed_no_more_stays_while_a_program_has_it_open(cloud, images, libvirt, tmp_path):
    playbook = Playbook(tmp_path / "play", cloud, host_python=HOST_PYTHON)
    library = tmp_path / "library"
    library.mkdir()
    for name in ("closed", "open"):
        playbook(yaml.safe_dump({"cloud": "demo", "image": "disk-qcow2", "path": f"{library}/{name}"}))
    wanted = {"cloud": "demo", "prune": True, "image_sync_images": [], "image_sync_folders": [str(library)]}
    command = [playbook.program, "imageferry.glance.sync_images", "-i", playbook.folder / "inventory", "-e"]
    with (library / "open").open("rb"):
        done = subprocess.run(
            [*command, json.dumps(wanted)], env=playbook.environment, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0 and "1 changed, 1 ok, 0 failed." in done.stdout, done.stdout
    assert os.listdir(library) == ["open"]
