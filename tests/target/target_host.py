# Copyright (c) imageferry.glance contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A whole host for tests: Debian in QEMU, with a second disk for a volume group, reached over SSH.

    python3 tests/target/target_host.py start
    ansible -i ~/.cache/imageferry/target/inventory.yml all -m ansible.builtin.ping

It needs no KVM. The host's system is made once of Debian packages, in minutes, and kept in the cache of the sample
images. Each start makes a new host of it, on new disks. The host has no network but this machine:
what listens on the machine's loopback is at 10.0.2.2 there, and apt has a repository of the host's own.

Needs the standard library and these Debian packages: mmdebstrap, e2fsprogs, qemu-utils, qemu-system-x86,
openssh-client; and unless run as root fakeroot and uidmap.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import dataclasses
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "cloud"))
import sample_images  # noqa: E402
from background import (  # noqa: E402
    HOST,
    ProcessStatus,
    StateFolder,
    cache_folder,
    listen,
    tail,
    wait_until,
    write_private,
)
from sample_images import MIB, SUITE, SampleError, cached, run, tool  # noqa: E402

MACHINE_ADDRESS = "10.0.2.2"  # what QEMU's user networking calls this machine's loopback
DATA_DEVICE = "/dev/vdb"
ACCELERATORS = ("auto", "kvm", "tcg")
PROBE_TIMEOUT = 15.0
START_TIMEOUT = 300.0
STOP_TIMEOUT = 90.0

SYSTEM_SIZE = 4096 * MIB
DATA_SIZE = 8192 * MIB
SYSTEM_PACKAGES = "linux-image-cloud-amd64,systemd-sysv,udev,kmod,openssh-server,python3,python3-apt,iproute2"
# What the host can install: the role host_prepare's packages for Debian.
REPOSITORY_PACKAGES = (
    "python3-requests",
    "qemu-utils",
    "lvm2",
    "thin-provisioning-tools",
    "python3-libnbd",
    "libvirt-daemon-system",
    "libvirt-clients",
    "python3-libvirt",
    "qemu-system-x86",
)
SYSTEM_OPTIONS = (
    "--variant=minbase",
    "--format=tar",
    f"--include={SYSTEM_PACKAGES}",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--skip=cleanup/apt/lists",
)


class TargetError(Exception):
    """The host could not be started or stopped."""


# The host's system


@dataclasses.dataclass(frozen=True)
class System:
    """What every host is started from: a folder with a disk, a kernel and its initial RAM disk."""

    folder: Path

    @property
    def disk(self) -> Path:
        """A raw file system."""
        return self.folder / "disk.raw"

    def boot_options(self, accelerator: str) -> list[str]:
        """QEMU's options to boot the kernel, without any device."""
        # Of emulated vector instructions the old ones are the fast ones.
        cpu = "host" if accelerator == "kvm" else "Nehalem"
        kernel = ("-kernel", str(self.folder / "vmlinuz"), "-initrd", str(self.folder / "initrd.img"))
        machine = ("-accel", accelerator, "-cpu", cpu, "-nodefaults", "-display", "none")
        return [*machine, *kernel, "-append", "root=/dev/vda rw console=ttyS0 mitigations=off"]


def system(cache: Path | None = None) -> System:
    """The system of every host, from the cache or made now. Its key is all that it is made from."""
    script = HERE / "make_reachable"

    def build(folder: Path, work: Path) -> None:
        folder.mkdir()
        hook = f'--customize-hook={shlex.quote(str(script))} "$1" {shlex.join(REPOSITORY_PACKAGES)}'
        run(tool("mmdebstrap"), *SYSTEM_OPTIONS, hook, SUITE, work / "tree.tar")
        made = System(folder)
        with made.disk.open("wb") as disk:
            disk.truncate(SYSTEM_SIZE)
        sample_images.fill_partition(made.disk, work, start=0, end=SYSTEM_SIZE)
        for name in ("vmlinuz", "initrd.img"):
            shutil.copyfile(work / "tree" / name, folder / name)

    recipe = (SUITE, SYSTEM_SIZE, SYSTEM_OPTIONS, REPOSITORY_PACKAGES, script.read_text(encoding="utf-8"))
    return System(cached("target-host", recipe, build, cache))


def best_accelerator(found: System, cache: Path | None = None) -> str:
    """``kvm`` if a kernel really comes up with it, else ``tcg``. Asked once for each time that the machine boots."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"

    def probe(verdict: Path, _work: Path) -> None:
        verdict.write_text("kvm" if comes_up(found, "kvm", PROBE_TIMEOUT) else "tcg", encoding="utf-8")

    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8")
    return cached("accelerator", boot_id, probe, cache).read_text(encoding="utf-8")


def comes_up(found: System, accelerator: str, timeout: float) -> bool:
    """Whether the kernel starts its first program in time."""
    with subprocess.Popen(
        [tool("qemu-system-x86_64"), *found.boot_options(accelerator), "-m", "512", "-serial", "stdio"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as emulator:
        try:
            return sample_images.prints(emulator, b"Run /init as init process", timeout)
        finally:
            emulator.kill()


# The host


@dataclasses.dataclass(frozen=True)
class TargetOptions:
    """What kind of host to start, and where it keeps its state.

    - state: the folder of the host's files; two hosts at once need two folders
    - accelerator: ``kvm``, ``tcg``, which is emulation, or ``auto`` for what works here
    - memory: MiB
    - cache: the folder of the host's system, None for the default one
    """

    state: Path = dataclasses.field(default_factory=lambda: cache_folder("target"))
    accelerator: str = "auto"
    memory: int = 1024
    cache: Path | None = None


class TargetHost:
    """A host that one process can start and another one stop: the state folder remembers all that matters."""

    def __init__(self, options: TargetOptions | None = None) -> None:
        """Describe a host. Nothing happens before `start`."""
        self.options = options or TargetOptions()
        self._folder = StateFolder(self.options.state, "target", TargetError)
        self.state = self._folder.path
        self.pid = self.started = self.port = 0
        self.accelerator = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._load()

    @property
    def inventory(self) -> Path:
        """An Ansible inventory with the host."""
        return self.state / "inventory.yml"

    @property
    def console(self) -> Path:
        """What the host has printed to its console."""
        return self.state / "console.log"

    @property
    def running(self) -> bool:
        """Whether the emulator runs, and its id was not given to another process."""
        if self._process:
            self._process.poll()  # or it would stay a zombie
        status = ProcessStatus.of(self.pid) if self.pid else None
        return status is not None and status.started == self.started

    def ssh(self, *command: str) -> list[str]:
        """The command that logs in, or runs a command on the host."""
        login = ("-i", str(self.state / "key"), "-p", str(self.port), "-o", "BatchMode=yes", f"root@{HOST}")
        return [tool("ssh"), *self._ssh_options, *login, *command]

    def start(self) -> bool:
        """Start a new host and wait until it can be logged in to. False if it runs already."""
        self._folder.make()
        with self._folder.locked():
            self._load()
            if self.running:
                return False
            found = system(self.options.cache)
            self.accelerator = self._choose_accelerator(found)
            self._make_files(found)
            try:
                self._launch(found)
                self._wait_for_login()
            except BaseException:
                self._end()
                raise
            return True

    def stop(self) -> bool:
        """Shut the host down, by force if it does not obey. False if it does not run."""
        if self._folder.record is None:
            return False
        with self._folder.locked():
            self._load()
            if not self.running:
                return False
            with contextlib.suppress(subprocess.TimeoutExpired):
                subprocess.run(self.ssh("systemctl", "poweroff"), capture_output=True, check=False, timeout=30)
                wait_until(lambda: not self.running, STOP_TIMEOUT)
            self._end()
            return True

    # State

    def _load(self) -> None:
        """Read what the last process noted that started this host."""
        record = self._folder.record
        if record is not None:
            self.pid, self.started, self.port = (record[name] for name in ("pid", "started", "port"))
            self.accelerator = record["accelerator"]

    def _save(self) -> None:
        noted = {"pid": self.pid, "started": self.started, "port": self.port, "accelerator": self.accelerator}
        self._folder.note(noted)

    def _choose_accelerator(self, found: System) -> str:
        chosen = self.options.accelerator
        return best_accelerator(found, self.options.cache) if chosen == "auto" else chosen

    def _make_files(self, found: System) -> None:
        """Make the disks and the key of a new host."""
        for name in ("key", "key.pub", "known_hosts", "data.raw", "root.qcow2"):
            (self.state / name).unlink(missing_ok=True)
        run(tool("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-C", "target", "-f", self.state / "key")
        run(tool("qemu-img"), "create", "-q", "-f", "qcow2", "-F", "raw", "-b", found.disk, self.state / "root.qcow2")
        with (self.state / "data.raw").open("wb") as disk:
            disk.truncate(DATA_SIZE)

    # Start and stop

    def _launch(self, found: System) -> None:
        """Start the emulator. It is noted at once, so that it cannot be left behind."""
        with listen(0) as free:
            self.port = free.getsockname()[1]
        with (self.state / "qemu.log").open("wb") as output:
            self._process = subprocess.Popen(
                [tool("qemu-system-x86_64"), *found.boot_options(self.accelerator), *self._devices()],
                cwd=self.state,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.pid = self._process.pid
        status = ProcessStatus.of(self.pid)
        self.started = status.started if status else 0
        self._save()
        write_private(self.inventory, json.dumps(self._inventory(), indent=2) + "\n")

    def _devices(self) -> list[str]:
        """QEMU's options for the host's devices. Its files are named as the state folder has them."""
        # systemd takes credentials from the firmware, and makes root's authorized_keys of this one.
        key = base64.b64encode((self.state / "key.pub").read_bytes()).decode()
        credential = f"io.systemd.credential.binary:ssh.authorized_keys.root={key}"
        return [
            *("-m", str(self.options.memory), "-smp", "2"),
            *("-serial", f"file:{self.console.name}"),
            *("-smbios", f"type=11,value={credential}"),
            *("-drive", "file=root.qcow2,format=qcow2,if=virtio,cache=unsafe"),
            *("-drive", "file=data.raw,format=raw,if=virtio,discard=unmap"),
            *("-netdev", f"user,id=lan,hostfwd=tcp:{HOST}:{self.port}-:22"),
            *("-device", "virtio-net-pci,netdev=lan", "-device", "virtio-rng-pci"),
        ]

    def _wait_for_login(self) -> None:
        """Wait until the host can be logged in to, or fail as soon as the emulator has ended."""

        def answers() -> bool:
            if not self.running:
                raise TargetError(f"QEMU has ended:\n{tail(self.state / 'qemu.log')}\n{tail(self.console)}")
            try:
                return not subprocess.run(self.ssh("true"), capture_output=True, check=False, timeout=30).returncode
            except subprocess.TimeoutExpired:
                return False

        if not wait_until(answers, START_TIMEOUT):
            raise TargetError(f"the host cannot be logged in to, see {self.console}:\n{tail(self.console)}")

    def _end(self) -> None:
        """End the emulator: first with a request, then by force."""
        for request in (signal.SIGTERM, signal.SIGKILL):
            if self.running:
                os.kill(self.pid, request)
                wait_until(lambda: not self.running, 10)
        if self.running:
            raise TargetError(f"QEMU (process {self.pid}) cannot be stopped")
        self.pid = self.started = 0
        self._save()

    # How to reach it

    @property
    def _ssh_options(self) -> tuple[str, ...]:
        known = ("-o", f"UserKnownHostsFile={self.state / 'known_hosts'}", "-o", "StrictHostKeyChecking=accept-new")
        return (*known, "-o", "IdentitiesOnly=yes", "-o", "LogLevel=ERROR", "-o", "ConnectTimeout=20")

    def _inventory(self) -> dict[str, Any]:
        """The inventory. What is no variable of Ansible's own tells scenarios about the host."""
        host = {
            "ansible_host": HOST,
            "ansible_port": self.port,
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(self.state / "key"),
            "ansible_ssh_common_args": shlex.join(self._ssh_options),
            "ansible_ssh_pipelining": True,
            "ansible_python_interpreter": "/usr/bin/python3",
            "scratch_device": DATA_DEVICE,
            "machine_address": MACHINE_ADDRESS,
        }
        return {"all": {"hosts": {"target": host}}}


# Command line


def show_started(host: TargetHost, seconds: float) -> None:
    """Say how to use the host, with commands that can be pasted."""
    program = min(os.path.relpath(__file__), os.path.abspath(__file__), key=len)
    state = [] if host.options.state == TargetOptions().state else ["--state", str(host.state)]
    print(
        f"Host       Debian {SUITE}, {host.accelerator}, process {host.pid}   (ready in {seconds:.1f} s)\n"
        f"Disk       {DATA_DEVICE}, {DATA_SIZE // MIB // 1024} GiB, empty\n"
        f"Console    {host.console}\n"
        f"Inventory  {host.inventory}\n"
        f"There, this machine's loopback is {MACHINE_ADDRESS}.\n"
        "\nLog in:\n"
        f"  {shlex.join(host.ssh())}\n"
        "\nTry it:\n"
        f"  ansible -i {shlex.quote(str(host.inventory))} all -m ansible.builtin.ping\n"
        "\nStop it (its disks are gone with the next start):\n"
        f"  {shlex.join([sys.executable, program, 'stop', *state])}"
    )


def show_status(host: TargetHost) -> None:
    """Say what runs."""
    print(f"running on port {host.port}, process {host.pid}, {host.accelerator}" if host.running else "stopped")
    if host.running:
        print(f"inventory {host.inventory}\nlogin     {shlex.join(host.ssh())}")


def command_line() -> argparse.ArgumentParser:
    """The parser of the command line. A command's options are `TargetOptions` of the same names."""
    unset = argparse.SUPPRESS
    state = argparse.ArgumentParser(add_help=False, argument_default=unset)
    state.add_argument("--state", type=Path, metavar="DIR", help=f"its files (default: {TargetOptions().state})")
    change = argparse.ArgumentParser(add_help=False)
    change.add_argument("--json", action="store_true", help="say for programs what was done")
    parser = argparse.ArgumentParser(description="A whole host, in QEMU, for tests.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="start|stop|status|build")
    start = commands.add_parser(
        "start", parents=[state, change], argument_default=unset, help="start a new host and say how to use it"
    )
    start.add_argument("--accelerator", choices=ACCELERATORS, help="default: kvm where it works, else tcg")
    start.add_argument("--memory", type=int, metavar="MIB", help="default: 1024")
    commands.add_parser("stop", parents=[state, change], argument_default=unset, help="shut it down")
    commands.add_parser("status", parents=[state], argument_default=unset, help="exit code 0 if it runs, 3 if not")
    commands.add_parser("build", help="only make what each start needs, and print where it is")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command line program."""
    options = vars(command_line().parse_args(arguments))
    command, for_programs = options.pop("command"), options.pop("json", False)
    try:
        host = TargetHost(TargetOptions(**options))
        if command == "build":
            print(system().folder)
            return 0
        if command == "status":
            show_status(host)
            return 0 if host.running else 3
        began = time.monotonic()
        changed = host.start() if command == "start" else host.stop()
        if for_programs:
            print(json.dumps({"changed": changed, "inventory": str(host.inventory)}))
        elif command == "start":
            show_started(host, time.monotonic() - began)
    except (TargetError, SampleError) as error:
        print(f"target_host: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
