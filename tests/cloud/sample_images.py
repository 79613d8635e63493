# Copyright (c) imageferry.glance contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Real images for tests and demos: bootable ISOs, file systems with real files, a Debian system.

Nothing is downloaded but Debian packages. What takes long to make is made once for each user, in
$XDG_CACHE_HOME/imageferry/images. Needs the standard library and these Debian packages:

- `iso`: ipxe; `grub_rescue_iso`: grub-rescue-pc
- `filesystem_raw`: e2fsprogs; `filesystem_qcow2`: qemu-utils, too
- `debian_system_disk`: mmdebstrap, e2fsprogs, grub-common, grub-pc-bin, qemu-utils, and fakeroot unless run as root
- `boots`: qemu-system-x86
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import os
import selectors
import shlex
import shutil
import struct
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

MIB = 1024 * 1024
SECTOR = 512
IPXE_ISO = Path("/usr/lib/ipxe/ipxe.iso")
GRUB_RESCUE_ISO = Path("/usr/lib/grub-rescue/grub-rescue-cdrom.iso")
GRUB_BOOT_SECTOR = Path("/usr/lib/grub/i386-pc/boot.img")

PACKAGES = {
    "fakeroot": "fakeroot",
    "grub-mkimage": "grub-common",
    "mke2fs": "e2fsprogs",
    "mmdebstrap": "mmdebstrap",
    "qemu-img": "qemu-utils",
    "qemu-system-x86_64": "qemu-system-x86",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
}


class SampleError(Exception):
    """A sample image could not be made, mostly because a Debian package is missing."""


# Tools and the cache


def tool(name: str) -> str:
    """The path of a command, also of one that only root has in its PATH."""
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if not path:
        raise SampleError(f"{name} is missing: apt-get install {PACKAGES[name]}")
    return path


def packaged(path: Path, package: str) -> Path:
    """A file that comes with a Debian package."""
    if not path.exists():
        raise SampleError(f"{path} is missing: apt-get install {package}")
    return path


def run(*command: str | Path) -> None:
    """Run a command, whose output matters only if it fails."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        end = "\n".join((done.stdout + done.stderr).splitlines()[-25:])
        raise SampleError(f"{shlex.join(map(str, command))} failed ({done.returncode}):\n{end}")


def default_cache() -> Path:
    """The folder for images that can be made again."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "imageferry" / "images"


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process at a time make a file."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def cached(name: str, recipe: object, build: Callable[[Path, Path], None], cache: Path | None) -> Path:
    """The image of that name and recipe, from the cache or made now.

    ``build`` gets the path to write to and a folder for other files. The image enters the cache when it is complete.
    """
    folder = cache or default_cache()
    folder.mkdir(parents=True, exist_ok=True)
    stem, suffix = os.path.splitext(name)
    key = hashlib.sha256(repr(recipe).encode()).hexdigest()[:12]
    image = folder / f"{stem}-{key}{suffix}"
    if not image.exists():
        with locked(folder / f".{image.name}.lock"), tempfile.TemporaryDirectory(prefix=".build-", dir=folder) as work:
            if not image.exists():
                draft = Path(work) / "image"
                build(draft, Path(work))
                draft.replace(image)
    return image


# ISOs


def iso() -> Path:
    """A small ISO 9660 image that boots: iPXE's, 2 MiB."""
    return packaged(IPXE_ISO, "ipxe")


def grub_rescue_iso() -> Path:
    """Another one, which boots as a CD and as a USB disk: GRUB's, 5 MiB."""
    return packaged(GRUB_RESCUE_ISO, "grub-rescue-pc")


# File systems


def real_files(source: Path, target: Path, size: int) -> None:
    """Copy files of a folder, in the order of their paths, up to a total size."""
    left = size
    for path in sorted(source.rglob("*.py")):
        length = path.stat().st_size
        if length <= left and path.is_file():
            left -= length
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)


def filesystem_raw(size: int = 64 * MIB, *, cache: Path | None = None) -> Path:
    """A raw disk of exactly that size with ext4 and, in up to a quarter of it, this Python's own library. Sparse."""
    library = Path(sysconfig.get_paths()["stdlib"])

    def build(image: Path, work: Path) -> None:
        files = work / "files"
        files.mkdir()
        real_files(library, files, size // 4)
        with image.open("wb") as disk:
            disk.truncate(size)
        inodes = sum(1 for _entry in files.rglob("*")) + 1024  # many files are smaller than mke2fs expects
        options = ("-t", "ext4", "-m", "0", "-N", str(inodes), "-L", "imageferry")
        run(tool("mke2fs"), "-q", "-F", *options, "-d", files, image)

    return cached(f"filesystem-{size}.raw", (size, library, sys.version), build, cache)


def filesystem_qcow2(size: int = 64 * MIB, *, compressed: bool = False, cache: Path | None = None) -> Path:
    """The disk of `filesystem_raw` as qcow2, on request with compressed clusters."""
    raw = filesystem_raw(size, cache=cache)
    options = ["-c"] if compressed else []

    def build(image: Path, _work: Path) -> None:
        run(tool("qemu-img"), "convert", "-f", "raw", "-O", "qcow2", *options, raw, image)

    return cached(f"filesystem-{size}{'-compressed' if compressed else ''}.qcow2", raw.name, build, cache)


# A big disk


STRETCH = 32 * MIB


def half_empty_raw(size: int = 3072 * MIB, *, compressible: bool = False, cache: Path | None = None) -> Path:
    """A raw disk that is worth watching on its way: stretches of noise and, as long as them, holes. Made in seconds.

    :param compressible: whether half of the noise is none, in turns of 2 KiB.
    """

    def build(image: Path, _work: Path) -> None:
        noise = os.urandom(MIB)
        if compressible:
            noise = b"".join(
                noise[start : start + 2048] + b"imageferry " * 186 + b"\n\n" for start in range(0, MIB, 4096)
            )
        with image.open("wb") as disk:
            disk.truncate(size)
            for start in range(0, size, 2 * STRETCH):
                disk.seek(start)
                for position in range(start, min(start + STRETCH, size), MIB):
                    # No two blocks are the same, which storage could notice.
                    disk.write((position.to_bytes(8, "little") + noise[8:])[: size - position])

    name = f"half-empty-{size}{'-compressible' if compressible else ''}.raw"
    return cached(name, (size, STRETCH, *([compressible] if compressible else [])), build, cache)


# A guest that counts

# Real mode, at 0x7c00: in each turn it adds one to a number and writes that by INT 13h, function 43h (EDD), to the
# sector at 1 MiB of the first disk, then of the second.
COUNTER = bytes.fromhex(
    "31c0 8ed8 8ed0 bc007c"  # xor ax, ax; mov ds, ax; mov ss, ax; mov sp, 0x7c00
    "66ff06007e"  # turn: inc dword [0x7e00]
    "b280 e80700"  # mov dl, 0x80; call write
    "b281 e80200"  # mov dl, 0x81; call write
    "ebef"  # jmp turn
    "b80043 be247c cd13 c3 00"  # write: mov ax, 0x4300; mov si, packet; int 0x13; ret
    "1000 0100 007e0000 0008000000000000"  # packet: its length, one sector, from 0x7e00, to sector 2048
)
COUNTER_POSITION = MIB


def counting_raw(size: int = 8 * MIB, *, cache: Path | None = None) -> Path:
    """A raw disk from which a guest boots that does nothing but count, on its first disk and then on its second."""

    def build(image: Path, _work: Path) -> None:
        with image.open("wb") as disk:
            disk.write(boot_record(COUNTER, COUNTER_POSITION // SECTOR, (size - COUNTER_POSITION) // SECTOR))
            disk.truncate(size)

    return cached(f"counting-{size}.raw", (size, COUNTER, 2), build, cache)


# A Debian system


SUITE = "bookworm"
SYSTEM_PACKAGES = "linux-image-cloud-amd64,systemd-sysv,udev,kmod"
SYSTEM_SIZE = 1024 * MIB
SYSTEM_PARTITION = 1 * MIB  # the bytes before it hold the boot loader
SYSTEM_OPTIONS = (
    "--variant=minbase",
    "--format=tar",
    f"--include={SYSTEM_PACKAGES}",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
    "--dpkgopt=path-exclude=/usr/share/man/*",
    '--customize-hook=echo ferry > "$1/etc/hostname"',
    '--customize-hook=echo "LABEL=imageferry / ext4 defaults 0 0" > "$1/etc/fstab"',
    # On a machine that is emulated by an emulated one, all takes minutes.
    """--customize-hook=printf '[Manager]\\n%s\\n' DefaultTimeoutStartSec=infinity DefaultDeviceTimeoutSec=infinity \\
        >>"$1/etc/systemd/system.conf\"""",
    # The usual prompt of a serial port waits until udev has found the port; this one needs only the kernel's console.
    '--customize-hook=chroot "$1" systemctl enable console-getty.service',
    '--customize-hook=chroot "$1" systemctl disable getty@tty1.service',
    # Nobody can log in over a network: there is no server, and no network is configured.
    '--customize-hook=chroot "$1" passwd --delete root',
)
# A tar archive becomes a file system at an offset of the disk, without root and without a loop device.
SYSTEM_SCRIPT = """
set -e
mkdir "$work/tree"
tar --extract --preserve-permissions --exclude='./dev/*' --file="$work/tree.tar" --directory="$work/tree"
"$mke2fs" -q -F -t ext4 -L imageferry -d "$work/tree" -E "offset=$offset" "$image" "${kib}k"
"""
GRUB_MODULES = ("biosdisk", "part_msdos", "ext2", "linux", "serial", "terminal")
GRUB_CONFIG = """\
serial --unit=0 --speed=115200
terminal_output serial
set root=(hd0,msdos1)
linux /vmlinuz root=LABEL=imageferry rw console=ttyS0 quiet mitigations=off \
    systemd.show_status=false systemd.getty_auto=no
initrd /initrd.img
boot
"""


def debian_system_disk(*, cache: Path | None = None) -> Path:
    """A qcow2 disk with a minimal Debian that boots by itself from BIOS, with its console on the serial port."""
    recipe = (SUITE, SYSTEM_SIZE, SYSTEM_PARTITION, SYSTEM_OPTIONS, SYSTEM_SCRIPT, GRUB_MODULES, GRUB_CONFIG)
    return cached("debian-system.qcow2", recipe, build_system, cache)


def build_system(image: Path, work: Path) -> None:
    """Make the disk of `debian_system_disk`."""
    boot_sector, qemu_img = packaged(GRUB_BOOT_SECTOR, "grub-pc-bin"), tool("qemu-img")
    disk, core = work / "disk.raw", work / "core.img"
    make_boot_loader(core, work)
    with disk.open("wb") as file:
        file.truncate(SYSTEM_SIZE)
    run(tool("mmdebstrap"), *SYSTEM_OPTIONS, SUITE, work / "tree.tar")
    fill_partition(disk, work)
    write_boot_loader(disk, boot_sector.read_bytes(), core.read_bytes())
    run(qemu_img, "convert", "-f", "raw", "-O", "qcow2", disk, image)


def fill_partition(disk: Path, work: Path, start: int = SYSTEM_PARTITION, end: int = SYSTEM_SIZE) -> None:
    """Unpack the system and make a file system of it. fakeroot keeps owners that only root could set."""
    variables = {
        "work": work,
        "image": disk,
        "mke2fs": tool("mke2fs"),
        "offset": start,
        "kib": (end - start) // 1024,
    }
    fakeroot = [tool("fakeroot")] if os.geteuid() else []
    run(*fakeroot, "env", *(f"{name}={value}" for name, value in variables.items()), "sh", "-c", SYSTEM_SCRIPT)


def make_boot_loader(core: Path, work: Path) -> None:
    """Make a GRUB that finds all it needs in itself."""
    config = work / "grub.cfg"
    config.write_text(GRUB_CONFIG, encoding="utf-8")
    options = ("--format=i386-pc", "--prefix=(hd0,msdos1)/boot/grub", f"--config={config}", f"--output={core}")
    run(tool("grub-mkimage"), *options, *GRUB_MODULES)


def write_boot_loader(disk: Path, boot_sector: bytes, core: bytes) -> None:
    """Write the master boot record, and GRUB right behind it, where its boot sector looks for the rest."""
    if SECTOR + len(core) > SYSTEM_PARTITION:
        raise SampleError(f"GRUB does not fit before the partition: {len(core)} bytes")
    first, count = SYSTEM_PARTITION // SECTOR, (SYSTEM_SIZE - SYSTEM_PARTITION) // SECTOR
    with disk.open("r+b") as file:
        file.write(boot_record(boot_sector[:446], first, count) + core)


def boot_record(code: bytes, first: int, count: int) -> bytes:
    """A master boot record with one partition, of so many sectors; Glance refuses a raw image whose record has none."""
    no_chs = b"\xfe\xff\xff"  # the address is the sector number alone
    partition = struct.pack("<B3sB3sII", 0x80, no_chs, 0x83, no_chs, first, count)
    return code.ljust(446, b"\0") + partition.ljust(64, b"\0") + b"\x55\xaa"


# Boot


def boots(disk: Path, timeout: float = 300, *, disk_format: str | None = None) -> bool:
    """Whether a login prompt comes to the serial console of a machine with that disk, which is not changed.

    The machine is emulated (TCG), so it needs no KVM. The format is taken from the file's name unless it is given.
    """
    disk_format = disk_format or ("qcow2" if disk.suffix == ".qcow2" else "raw")
    file = str(disk).replace(",", ",,")
    machine = ("-accel", "tcg", "-cpu", "max", "-m", "512", "-nographic", "-nic", "none", "-no-reboot", "-snapshot")
    with subprocess.Popen(
        [tool("qemu-system-x86_64"), *machine, "-drive", f"file={file},format={disk_format}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as emulator:
        try:
            return prints(emulator, b" login:", timeout)
        finally:
            emulator.kill()


def prints(process: subprocess.Popen[bytes], text: bytes, timeout: float) -> bool:
    """Whether a process prints a text in time."""
    if process.stdout is None:
        raise ValueError("the process has no pipe")
    deadline = time.monotonic() + timeout
    seen = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while text not in seen and (left := deadline - time.monotonic()) > 0:
            if selector.select(left):
                part = os.read(process.stdout.fileno(), 65536)
                if not part:
                    break
                seen = seen[-len(text) :] + part
    return text in seen


# Command line


class Sample(NamedTuple):
    """An image of the command line program. ``path`` takes the cache's folder, None for the default one."""

    path: Callable[[Path | None], Path]
    description: str


SAMPLES = {
    "iso": Sample(lambda _cache: iso(), "bootable ISO, 2 MiB"),
    "rescue": Sample(lambda _cache: grub_rescue_iso(), "bootable ISO, 5 MiB"),
    "raw": Sample(lambda cache: filesystem_raw(cache=cache), "ext4 with real files, sparse, 64 MiB"),
    "qcow2": Sample(lambda cache: filesystem_qcow2(cache=cache), "the same as qcow2"),
    "compressed": Sample(
        lambda cache: filesystem_qcow2(compressed=True, cache=cache), "the same as qcow2 with compressed clusters"
    ),
    "half-empty": Sample(lambda cache: half_empty_raw(cache=cache), "raw disk, half noise and half holes, 3 GiB"),
    "counting": Sample(lambda cache: counting_raw(cache=cache), "raw disk whose guest counts on two disks, 8 MiB"),
    "system": Sample(
        lambda cache: debian_system_disk(cache=cache), "Debian that boots by itself, qcow2 (minutes the first time)"
    ),
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line program."""
    parser = argparse.ArgumentParser(description="Make a sample image, if it is not there yet, and print its path.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("list", help="the images there are")
    for name, sample in SAMPLES.items():
        command = commands.add_parser(name, help=sample.description)
        command.add_argument("--cache", type=Path, metavar="DIR", help=f"where it is kept (default: {default_cache()})")
    boot = commands.add_parser("boots", help="boot a disk: exit code 0 if a login prompt comes")
    boot.add_argument("disk", type=Path)
    boot.add_argument("--timeout", type=float, default=300, metavar="SECONDS")
    options = parser.parse_args(arguments)
    try:
        if options.command == "list":
            print("\n".join(f"{name:11} {sample.description}" for name, sample in SAMPLES.items()))
        elif options.command == "boots":
            return 0 if boots(options.disk, options.timeout) else 1
        else:
            print(SAMPLES[options.command].path(options.cache))
    except SampleError as error:
        print(f"sample_images: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
