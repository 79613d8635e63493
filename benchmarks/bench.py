# Copyright (c) 2026, ImageFerry contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Measures import and export against what people use instead, side by side in one run: ``make bench``.

The contenders take turns, so that a machine that gets slower gets slower for all; what is printed are medians, and
ratios of them beside their targets. They talk to a real Glance on this machine. Import and export are the modules as
they run on a host, with the arguments that the controller gives them; Ansible is part of the comparison with its copy
alone.
"""

from __future__ import annotations

import argparse
import contextlib
import http.server
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ansible
import requests

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "cloud"), str(ROOT / "tests" / "integration")]
import background  # noqa: E402
import embedded_cloud  # noqa: E402
import faulty_proxy  # noqa: E402
import sample_images  # noqa: E402

MIB = 1024**2
GIB = 1024**3
BLOCK = 64 * 1024
CAP = 50 * 10**6  # bytes a second of each connection, where they are capped
TASKS = 5  # of one kind in a playbook, so that they outweigh its start
MODULES = ROOT / "plugins" / "modules"
HOST_PYTHON = "/usr/bin/python3"  # the distribution's, which its python3-libnbd goes with
COLLECTIONS = ROOT / ".cache" / "collections"


class Image(NamedTuple):
    """An image in Glance: the file that it was made from, and what the controller tells a host of it."""

    file: Path
    url: str
    described: dict[str, Any]


class Run(NamedTuple):
    """What a command took, or the medians of several runs.

    :param memory: bytes of the largest of its processes.
    :param cpu: seconds of all its processes.
    :param staged: bytes kept aside.
    :param moved: bytes that went over the network, where that is counted.
    """

    seconds: float
    memory: float
    cpu: float = 0
    staged: float = 0
    moved: float = 0

    def __add__(self, then: Run) -> Run:  # type: ignore[override]
        return Run(
            self.seconds + then.seconds,
            max(self.memory, then.memory),
            self.cpu + then.cpu,
            self.staged + then.staged,
            self.moved + then.moved,
        )


Contender = Callable[[], Run]


class Receiver(http.server.ThreadingHTTPServer):
    """Takes an image's bytes as Glance would, but neither hashes nor keeps them."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receipt)
        self.record: dict[str, Any] = {}

    def __enter__(self) -> Receiver:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.shutdown()
        self.server_close()

    def expect(self) -> str:
        """The address of a new image's file."""
        self.record = {"status": "queued", "size": None}
        return f"http://127.0.0.1:{self.server_port}/v2/images/{uuid.uuid4()}/file"


class _Receipt(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Receiver

    def do_GET(self) -> None:
        record = json.dumps(self.server.record).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(record)))
        self.end_headers()
        self.wfile.write(record)

    def do_PUT(self) -> None:
        if self.headers["Expect"]:
            self.send_response_only(100)
            self.end_headers()
        size = left = int(self.headers["Content-Length"])
        buffer = memoryview(bytearray(MIB))
        while left:
            left -= self.rfile.readinto(buffer[:left])
        self.server.record = {"status": "active", "size": size}
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_arguments: object) -> None:
        pass


class Bench:
    """A cloud, a folder to fetch to, and those who do it."""

    def __init__(self, folder: Path, cloud: embedded_cloud.EmbeddedCloud, options: argparse.Namespace) -> None:
        self.folder, self.cloud, self.venv, self.rounds = folder, cloud, options.venv, options.rounds
        self.size = int(options.size * GIB)
        self.target = folder / "target"
        environment = {**os.environ, "OS_CLIENT_CONFIG_FILE": str(cloud.clouds_yaml), "OS_CLOUD": "demo"}
        self.environment = {name: value for name, value in environment.items() if name != "PYTHONPATH"}
        self.token = self.openstack("token", "issue")["id"]
        self.headers = folder / "headers"
        background.write_private(self.headers, f"X-Auth-Token: {self.token}\n")

    # Images

    def openstack(self, *arguments: str) -> dict[str, Any]:
        command = [self.venv / "bin" / "openstack", *arguments, "-f", "json"]
        done = subprocess.run(command, env=self.environment, check=True, capture_output=True)
        result: dict[str, Any] = json.loads(done.stdout)
        return result

    def upload(self, file: Path, disk_format: str) -> Image:
        made = self.openstack("image", "create", f"--disk-format={disk_format}", f"--file={file}", file.name)
        properties = self.openstack("image", "show", made["id"])["properties"]
        hashes = {name: properties[name] for name in ("os_hash_algo", "os_hash_value")}
        described = {"id": made["id"], "disk_format": disk_format, "size": file.stat().st_size, **hashes}
        return Image(file, f"{self.cloud.image_url}/v2/images/{made['id']}/file", described)

    def raw(self, size: int | None = None) -> Image:
        return self.upload(sample_images.half_empty_raw(size or self.size), "raw")

    def qcow2(self) -> Image:
        """The raw image as qcow2."""
        file = self.folder / "image.qcow2"
        raw = sample_images.half_empty_raw(self.size)
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, file], check=True)
        return self.upload(file, "qcow2")

    # Contenders

    def run(self, command: list[Any], **environment: str) -> Run:
        started = time.monotonic()
        output = self.folder / "output"
        with output.open("wb") as file:
            process = subprocess.Popen(command, env={**self.environment, **environment}, stdout=file, stderr=file)
            _pid, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{command[0]} failed:\n{output.read_text()}")
        return Run(time.monotonic() - started, usage.ru_maxrss * 1024, usage.ru_utime + usage.ru_stime)

    def curl(self, image: Image) -> Run:
        return self.run(["curl", "-sSf", "-H", f"@{self.headers}", "-o", self.target, image.url])

    def sha512(self, image: Image) -> Run:
        return self.run(["openssl", "dgst", "-sha512", image.file])

    def save(self, image: Image) -> Run:
        command = [self.venv / "bin" / "openstack", "image", "save", "--chunk-size=1048576"]
        return self.run([*command, f"--file={self.target}", image.described["id"]])

    def save_and_convert(self, image: Image) -> Run:
        command = ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", self.target, self.folder / "converted"]
        return self.save(image) + self.run(command)

    def fetch(self, image: Image, **options: Any) -> Run:
        """The module."""
        arguments = {
            "url": image.url,
            "_image": image.described,
            "_token": self.token,
            **({} if "device" in options else {"path": str(self.target)}),
            **options,
        }
        run, result = self.module("glance_image_import", arguments, sys.executable, COLLECTIONS)
        return run._replace(staged=result["transfer"]["staged_bytes"])

    def module(self, name: str, arguments: dict[str, Any], python: str, libraries: Path) -> tuple[Run, dict[str, Any]]:
        given = self.folder / "arguments.json"
        told = {**arguments, "_ansible_remote_tmp": str(self.folder)}
        background.write_private(given, json.dumps({"ANSIBLE_MODULE_ARGS": told}))
        run = self.run([python, MODULES / f"{name}.py", given], PYTHONPATH=str(libraries))
        return run, json.loads((self.folder / "output").read_text().splitlines()[-1])

    def fetch_unverified(self, image: Image) -> Run:
        kept = {name: value for name, value in image.described.items() if not name.startswith("os_hash")}
        return self.fetch(image._replace(described=kept), allow_unverified=True)

    def push(self, disk: Path, image_format: str, receiver: Receiver | None = None, **options: Any) -> Run:
        """The module that exports, to Glance or to C(receiver)."""
        image = self.draft(image_format)
        target = {
            "url": receiver.expect() if receiver else f"{self.cloud.image_url}/v2/images/{image}/file",
            "format": image_format,
            "known": [],
            "hash": "sha512",
        }
        arguments = {"path": str(disk), "source_format": "raw", "name": "bench", "spool_dir": str(self.folder),
                     "_known": {}, "_images": {"": target}, "_token": self.token, **options}  # fmt: skip
        run, result = self.module("glance_image_export", arguments, HOST_PYTHON, self.host_libraries())
        self.remove(image)
        transfer = result["disks"][0]["transfer"]
        return run._replace(staged=transfer["staged_bytes"], moved=transfer["bytes"])

    def convert_and_push(
        self, disk: Path, image_format: str, *options: str, curl: bool = False, receiver: Receiver | None = None
    ) -> Run:
        """What people do instead, with openstackclient or with curl."""
        converted = self.folder / "converted"
        made = self.run(["qemu-img", "convert", "-f", "raw", "-O", image_format, *options, disk, converted])
        size = converted.stat().st_blocks * 512
        image = self.draft(image_format)
        if curl:
            where = receiver.expect() if receiver else f"{self.cloud.image_url}/v2/images/{image}/file"
            kind = "Content-Type: application/octet-stream"
            sent = self.run(["curl", "-sSf", "-H", f"@{self.headers}", "-H", kind, "-T", converted, where])
        else:
            command = [self.venv / "bin" / "openstack", "image", "create", f"--disk-format={image_format}"]
            self.remove(image)
            sent = self.run([*command, f"--file={converted}", "-f", "value", "-c", "id", "bench"])
            image = (self.folder / "output").read_text().split()[-1]
        self.remove(image)
        return (made + sent)._replace(staged=size, moved=converted.stat().st_size)

    def draft(self, image_format: str) -> str:
        """A queued image, which openstackclient cannot make: it takes its standard input for the bytes."""
        told = {"name": "bench", "disk_format": image_format, "container_format": "bare"}
        headers = {"X-Auth-Token": self.token}
        answer = requests.post(f"{self.cloud.image_url}/v2/images", json=told, headers=headers, timeout=60)
        answer.raise_for_status()
        return str(answer.json()["id"])

    def remove(self, image: str) -> None:
        subprocess.run([self.venv / "bin" / "openstack", "image", "delete", image], env=self.environment, check=True)

    def host_libraries(self) -> Path:
        """Where the distribution's Python finds Ansible and the collections, and nothing else."""
        folder = self.folder / "libraries"
        if not folder.exists():
            folder.mkdir()
            (folder / "ansible").symlink_to(Path(ansible.__file__).parent)
            (folder / "ansible_collections").symlink_to(COLLECTIONS / "ansible_collections")
        return folder

    def play(self, *tasks: dict[str, Any]) -> Run:
        playbook = self.folder / "playbook.json"
        playbook.write_text(json.dumps([{"hosts": "localhost", "gather_facts": False, "tasks": tasks}]))
        command = [Path(sys.prefix) / "bin" / "ansible-playbook", "-i", "localhost,", "-c", "local", playbook]
        python = {"ANSIBLE_PYTHON_INTERPRETER": sys.executable, "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS)}
        return self.run(command, **python)

    # Comparisons

    def compare(self, title: str, contenders: dict[str, Contender], size: int = 0) -> dict[str, Run]:
        """The medians of the rounds in which each has its turn, after one that does not count; prints them."""
        runs: dict[str, list[Run]] = {label: [] for label in contenders}
        for number in range(self.rounds + 1):
            for label, contender in contenders.items():
                run = contender()
                for file in (self.target, self.folder / "converted"):
                    file.unlink(missing_ok=True)
                if number:
                    runs[label].append(run)
        medians = {label: Run(*map(statistics.median, zip(*runs[label], strict=True))) for label in contenders}
        print(
            f"\n{title}, medians of {self.rounds}\n{'':36}{'seconds':>8}{'MiB/s':>8}{'CPU s':>8}{'peak MiB':>10}"
            f"{'aside MiB':>11}{'moved MiB':>11}"
        )
        for label, run in medians.items():
            rate = f"{size / MIB / run.seconds:8.0f}" if size else f"{'':8}"
            moved = f"{run.moved / MIB:11.0f}" if run.moved else ""
            kept = f"{run.memory / MIB:10.0f}{run.staged / MIB:11.0f}"
            print(f"{label:36}{run.seconds:8.2f}{rate}{run.cpu:8.2f}{kept}{moved}")
        return medians

    def allocation(self, image: Image) -> float:
        """What an imported file takes of its storage, divided by the image's blocks that are not zeros."""
        self.fetch(image)
        with image.file.open("rb") as file:
            blocks = sum(block.count(0) < len(block) for block in iter(lambda: file.read(BLOCK), b""))
        taken = self.target.stat().st_blocks * 512
        self.target.unlink()
        return taken / (blocks * BLOCK)

    @contextlib.contextmanager
    def device(self) -> Iterator[str]:
        """A loop device as large as the image."""
        behind = self.folder / "device"
        with behind.open("wb") as file:
            file.truncate(self.size)
        made = subprocess.run(["losetup", "--find", "--show", behind], check=True, capture_output=True, text=True)
        try:
            yield made.stdout.strip()
        finally:
            subprocess.run(["losetup", "--detach", made.stdout.strip()], check=True)
            behind.unlink()


def ratio(name: str, value: float, target: str) -> None:
    print(f"  {name:52}{value:7.2f}  {target}")


def measure_raw(bench: Bench) -> None:
    image = bench.raw()
    with bench.device() as device:
        curl, sha512, save, verified, unverified, _to_device = bench.compare(
            f"A half-empty raw image of {bench.size / GIB:g} GiB",
            {
                "curl -o, not verified": lambda: bench.curl(image),
                "sha512 alone, not fetched": lambda: bench.sha512(image),
                "openstack image save, 1 MiB": lambda: bench.save(image),
                "import, verified and sparse": lambda: bench.fetch(image),
                "import, allow_unverified": lambda: bench.fetch_unverified(image),
                "import to a block device": lambda: bench.fetch(image, device=device, overwrite="always"),
            },
            bench.size,
        ).values()
    ratio("P1 verified / max(curl, sha512)", verified.seconds / max(curl.seconds, sha512.seconds), "at most 1.10")
    ratio("P2 unverified / curl", unverified.seconds / curl.seconds, "at most 0.60")
    ratio("P3 image save / verified", save.seconds / verified.seconds, "at least 2.2")
    ratio("P8 allocated / not zero", bench.allocation(image), "at most 1.01")


def measure_qcow2(bench: Bench) -> None:
    image = bench.qcow2()
    with bench.device() as device:
        curl, sha512, save, to_file, to_device = bench.compare(
            f"The qcow2 of the same, {image.file.stat().st_size / GIB:.2f} GiB, to raw",
            {
                "curl -o, not converted": lambda: bench.curl(image),
                "sha512 alone, not fetched": lambda: bench.sha512(image),
                "openstack image save, convert": lambda: bench.save_and_convert(image),
                "import to a file": lambda: bench.fetch(image, format="raw"),
                "import to a block device": lambda: bench.fetch(image, format="raw", device=device, overwrite="always"),
            },
            image.file.stat().st_size,
        ).values()
    image.file.unlink()
    ratio("P4 (image save + convert) / to a file", save.seconds / to_file.seconds, "at least 2.0")
    ratio("P5 to a device / max(curl, sha512)", to_device.seconds / max(curl.seconds, sha512.seconds), "at most 1.3")
    ratio("P5 bytes kept elsewhere meanwhile", to_device.staged, "0")


def measure_memory(bench: Bench) -> None:
    """At a quarter of the size and at twice the size: 1 and 8 GiB, if nothing else is said."""
    small, large = (bench.raw(size) for size in (bench.size // 4, bench.size * 2))
    peaks = bench.compare(
        "Memory of the import",
        {
            f"{small.file.stat().st_size / GIB:g} GiB": lambda: bench.fetch(small),
            f"{large.file.stat().st_size / GIB:g} GiB": lambda: bench.fetch(large),
        },
    )
    less, more = (run.memory for run in peaks.values())
    ratio("P9 peak memory in MiB", max(less, more) / MIB, "at most 64")
    ratio("P9 peak memory at eight times the size", more / less, "1.00")


def measure_empty(bench: Bench) -> None:
    file = bench.folder / "empty.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", file, "1T"], check=True)
    image = bench.upload(file, "qcow2")
    runs = bench.compare(
        "An empty 1 TiB qcow2",
        {
            "import to raw": lambda: bench.fetch(image, format="raw"),
            "export": lambda: bench.push(file, "qcow2", source_format="qcow2"),
        },
    )
    for label, run in runs.items():
        ratio(f"P10 seconds, {label}", run.seconds, "at most 10")


def measure_task(bench: Bench) -> None:
    """Tasks with Ansible around them, without the start of their playbook."""
    file = bench.folder / "small.raw"
    file.write_bytes(os.urandom(MIB))
    image = bench.upload(file, "raw")
    places = [str(bench.folder / f"place{number}") for number in range(TASKS)]
    clean = {"ansible.builtin.command": {"argv": ["rm", "-f", *places]}}
    name = image.described["id"]
    runs = bench.compare(
        f"Playbooks of {TASKS} tasks",
        {
            "none": lambda: bench.play(clean),
            "ansible.builtin.copy, 1 MiB": lambda: bench.play(
                clean, *({"ansible.builtin.copy": {"src": str(file), "dest": place}} for place in places)
            ),
            "glance_image_import, 1 MiB": lambda: bench.play(
                clean,
                *(
                    {"imageferry.glance.glance_image_import": {"cloud": "demo", "image": name, "path": place}}
                    for place in places
                ),
            ),
        },
    )
    none, copy, ferry = (run.seconds for run in runs.values())
    ratio("P11 import / copy, a task each", (ferry - none) / (copy - none), "at most 1.5")


def measure_connections(bench: Bench) -> None:
    """What V(auto) chooses, alone on a fast network and where each connection is slow."""
    image = bench.raw(bench.size // 4)
    proxy = faulty_proxy.FaultyProxy(bench.cloud.image_url)
    proxy.programme(then=itertools.repeat(faulty_proxy.Fault(rate=CAP)))
    capped = image._replace(url=image.url.replace(bench.cloud.image_url, proxy.url().rstrip("/")))
    size = image.file.stat().st_size
    try:
        runs = bench.compare(
            f"Connections, {size / GIB:g} GiB",
            {
                f"{label}{number}": lambda source=source, number=number: bench.fetch(source, connections=number)
                for label, source in (("", image), (f"each at {CAP // 10**6} MB/s: ", capped))
                for number in ("1", "4", "auto")
            },
            size,
        )
    finally:
        proxy.stop()
    one, four, auto, slow_one, slow_four, slow_auto = (run.seconds for run in runs.values())
    ratio("auto / best", auto / min(one, four), "at most 1.03")
    ratio("auto / best, where each is slow", slow_auto / min(slow_one, slow_four), "at most 1.33")


def measure_export(bench: Bench) -> None:
    """A half-empty disk of files that compress to half their size; to Glance, and to a server that is no bottleneck."""
    disk = sample_images.half_empty_raw(bench.size, compressible=True)
    compressed = ("-c", "-W", "-m8", "-o", "compression_type=zstd")
    bench.compare(
        f"Export of a half-empty raw disk of {bench.size / GIB:g} GiB to Glance",
        {
            "raw: convert, image create": lambda: bench.convert_and_push(disk, "raw"),
            "raw: export": lambda: bench.push(disk, "raw"),
            "qcow2: convert, image create": lambda: bench.convert_and_push(disk, "qcow2"),
            "qcow2: convert, curl -T": lambda: bench.convert_and_push(disk, "qcow2", curl=True),
            "qcow2: export": lambda: bench.push(disk, "qcow2"),
            "zstd: convert -W -m8, image create": lambda: bench.convert_and_push(disk, "qcow2", *compressed),
            "zstd: convert -W -m8, curl -T": lambda: bench.convert_and_push(disk, "qcow2", *compressed, curl=True),
            "zstd: export": lambda: bench.push(disk, "qcow2", compress="zstd"),
        },
        bench.size,
    )
    with Receiver() as receiver:
        to: dict[str, Any] = {"receiver": receiver}
        other, qcow2, other_zstd, zstd = bench.compare(
            "The same to a server that only receives",
            {
                "qcow2: convert, curl -T": lambda: bench.convert_and_push(disk, "qcow2", curl=True, **to),
                "qcow2: export": lambda: bench.push(disk, "qcow2", **to),
                "zstd: convert -W -m8, curl -T": lambda: bench.convert_and_push(
                    disk, "qcow2", *compressed, curl=True, **to
                ),
                "zstd: export": lambda: bench.push(disk, "qcow2", compress="zstd", **to),
            },
            bench.size,
        ).values()
    ratio("P6 export qcow2 / (convert + curl -T)", qcow2.seconds / other.seconds, "at most 0.55")
    ratio("P6 bytes kept elsewhere meanwhile", qcow2.staged, "0")
    ratio("P7 export zstd / (convert -c + curl -T)", zstd.seconds / other_zstd.seconds, "at most 0.95")


MEASURED: dict[str, Callable[[Bench], None]] = {
    "raw": measure_raw,
    "qcow2": measure_qcow2,
    "memory": measure_memory,
    "empty": measure_empty,
    "task": measure_task,
    "connections": measure_connections,
    "export": measure_export,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venv", type=Path, required=True, help="virtual environment with Glance and Keystone")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=float, default=4, metavar="GIB", help="of the half-empty raw image (default: 4)")
    parser.add_argument("--only", nargs="+", choices=MEASURED, default=list(MEASURED), help="what to measure")
    parser.add_argument("--folder", type=Path, help="to fetch to (default: in memory, where there is room)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder or roomy(int(4 * options.size * GIB))) as name:
        folder = Path(name)
        cloud_options = embedded_cloud.CloudOptions(state=folder / "cloud", venv=options.venv)
        with embedded_cloud.EmbeddedCloud(cloud_options) as cloud:
            print(f"To {folder.parent}")
            for measured in options.only:
                MEASURED[measured](Bench(folder, cloud, options))


def roomy(size: int) -> Path:
    """A folder in memory if it holds so many bytes, as storage is not what is to be measured."""
    memory = Path("/dev/shm")  # noqa: S108 - the folder made in it is private
    return memory if memory.is_dir() and shutil.disk_usage(memory).free > size else Path(tempfile.gettempdir())


if __name__ == "__main__":
    main()
