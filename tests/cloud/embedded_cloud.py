# Copyright (c) imageferry.glance contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real Glance and a real Keystone on loopback, for tests, demos and a look around.

Both come from the Python package index (requirements.txt beside this file) and keep
everything in one state folder: sqlite databases, two file stores, logs, clouds.yaml.
Nothing needs root, a message bus or a container.

    python3.11 -m venv ~/cloud-venv
    ~/cloud-venv/bin/pip install -r tests/cloud/requirements.txt
    ~/cloud-venv/bin/python tests/cloud/embedded_cloud.py start

The module itself needs the standard library only: a test suite imports it from a virtual
environment of its own and names the servers' one with ``CloudOptions(venv=...)``.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import dataclasses
import getpass
import grp
import hashlib
import json
import os
import re
import shlex
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from background import (
    HOST,
    ProcessStatus,
    StateFolder,
    cache_folder,
    listen,
    tail,
    wait_until,
    works_in,
    write_private,
)

HERE = Path(__file__).resolve().parent
REGION = "RegionOne"
RANGES = ("serve", "refuse", "ignore")
START_TIMEOUT = 90.0
STOP_TIMEOUT = 10.0


@dataclasses.dataclass(frozen=True)
class User:
    """A user of the cloud and the entry of the same name in clouds.yaml."""

    name: str
    project: str
    roles: tuple[str, ...]

    @property
    def password(self) -> str:
        """No secret: the servers listen on loopback only."""
        return f"{self.name}-pw"


ADMIN = User("admin", "admin", ("admin",))
USERS = (ADMIN, User("demo", "demo", ("member",)), User("alt", "alt", ("member",)), User("reader", "demo", ("reader",)))
GLANCE_USER = User("glance", "service", ("admin", "service"))


class CloudError(Exception):
    """The cloud could not be started, or is not in the state that was asked for."""


@dataclasses.dataclass(frozen=True)
class CloudOptions:
    """What kind of cloud to run, and where it keeps its state.

    - state: the folder of the cloud's files; two clouds at once need two folders
    - venv: the virtual environment with the servers, by default the running interpreter's
    - internal_address: the host name or address of Glance's internal endpoint in the catalogue, such as
      10.0.2.2, by which a QEMU guest reaches this machine's loopback; None for the same as the public one
    - tls: serve HTTPS, with a certificate from a CA of the cloud's own
    - token_lifetime: seconds until a token expires
    - ranges: what a download with a Range header gets, see glance_app.py
    - stores: the names of Glance's file stores, the default one first
    - size_quota: bytes that the images of one project may take, None for no quota
    - import_hosts: the only hosts that web-download may fetch from, empty for all but loopback
    """

    state: Path = dataclasses.field(default_factory=lambda: cache_folder("cloud"))
    venv: Path | None = None
    internal_address: str | None = None
    tls: bool = False
    token_lifetime: int = 3600
    ranges: str = "serve"
    stores: tuple[str, ...] = ("store1", "store2")
    size_quota: int | None = None
    import_hosts: tuple[str, ...] = (HOST, "localhost")

    def __post_init__(self) -> None:
        """Refuse what could not work."""
        if self.ranges not in RANGES:
            raise ValueError(f"ranges is one of {', '.join(RANGES)}, not {self.ranges}")
        if not self.stores or not all(re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", store) for store in self.stores):
            raise ValueError(f"stores are plain names, at least one: {self.stores}")
        if self.token_lifetime < 1 or (self.size_quota is not None and self.size_quota < 1):
            raise ValueError("token_lifetime and size_quota are at least 1")

    @property
    def bin_folder(self) -> Path:
        """Where the servers' interpreter and commands are."""
        return Path(os.path.abspath(self.venv)) / "bin" if self.venv else Path(sys.executable).parent

    def recorded(self) -> dict[str, Any]:
        """What has to be the same for a running cloud to be the one that is wanted."""
        options = {**dataclasses.asdict(self), "venv": str(self.bin_folder.parent)}
        del options["state"]
        return {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}


@dataclasses.dataclass(frozen=True)
class LoggedRequest:
    """One line of a server's access log. ``sent`` counts the bytes of the answer's body."""

    method: str
    path: str
    status: int
    sent: int
    range: str | None


ACCESS_LOG_FORMAT = '%(t)s "%(r)s" %(s)s %(B)s "%({range}i)s"'
ACCESS_LOG_LINE = re.compile(r'"(\S+) (\S+)[^"]*" (\d+) (\d+) "([^"]*)"$')


def read_access_log(log: Path) -> list[LoggedRequest]:
    """The requests a server has answered, oldest first. A request is logged when it has ended."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    matches = filter(None, map(ACCESS_LOG_LINE.search, lines))
    return [
        LoggedRequest(method, path, int(status), int(sent), None if requested == "-" else requested)
        for method, path, status, sent, requested in (match.groups() for match in matches)
    ]


# Servers


class Server:
    """One gunicorn: a master process, its one worker, and the folder with all its files."""

    def __init__(self, folder: Path, port: int = 0, pid: int = 0, started: int = 0) -> None:
        """Describe a server that runs (pid), or one that ran on that port or is still to start."""
        self.folder = folder
        self.port = port
        self.pid = pid
        self.started = started
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def output(self) -> Path:
        """What gunicorn and the application print."""
        return self.folder / "gunicorn.log"

    @property
    def access_log(self) -> Path:
        """One line a request, see `read_access_log`."""
        return self.folder / "access.log"

    def recorded(self) -> dict[str, int]:
        """What is needed to find this very server again."""
        return {"port": self.port, "pid": self.pid, "started": self.started}

    @property
    def alive(self) -> bool:
        """Whether the master process still runs, and its id was not given to another one."""
        if self._process:
            self._process.poll()  # or it would stay a zombie
        status = ProcessStatus.of(self.pid) if self.pid else None
        return status is not None and status.started == self.started

    def processes(self) -> list[int]:
        """The ids of the server's processes. A worker can outlive a killed master for a moment."""
        if not self.pid or (ProcessStatus.of(self.pid) and not self.alive):
            return []
        group = []
        for pid in (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()):
            status = ProcessStatus.of(pid)
            if status and status.group == self.pid and works_in(pid, self.folder):
                group.append(pid)
        return group

    def launch(self, python: Path, environment: Mapping[str, str], listener: socket.socket, **settings: Any) -> None:
        """Start gunicorn on a listening socket, which is closed here. It is not yet ready when this returns."""
        # Keystone parses sys.argv, so gunicorn gets its settings from this file, which it finds by its name.
        settings |= {
            "bind": [f"fd://{listener.fileno()}"],
            "worker_class": "gthread",
            "workers": 1,
            "timeout": 600,
            "graceful_timeout": 3,
            "control_socket_disable": True,
            "accesslog": str(self.access_log),
            "access_log_format": ACCESS_LOG_FORMAT,
        }
        lines = (f"{name} = {value!r}\n" for name, value in settings.items())
        (self.folder / "gunicorn.conf.py").write_text("".join(lines), encoding="utf-8")
        with listener, self.output.open("ab") as output:
            self.port = listener.getsockname()[1]
            self._process = subprocess.Popen(
                [python, "-m", "gunicorn"],
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=[listener.fileno()],
            )
        self.pid = self._process.pid
        status = ProcessStatus.of(self.pid)
        self.started = status.started if status else 0

    def wait_ready(self, url: str, web: urllib.request.OpenerDirector) -> None:
        """Wait until the server answers, or fail as soon as it has died."""

        def answers() -> bool:
            if not self.alive:
                raise CloudError(f"{self.folder.name} died at its start, see {self.output}:\n{tail(self.output)}")
            try:
                with web.open(url, timeout=2):
                    return True
            except urllib.error.HTTPError as error:
                error.close()
                return False
            except OSError:
                return False

        if not wait_until(answers, START_TIMEOUT):
            raise CloudError(f"{self.folder.name} does not answer at {url}, see {self.output}:\n{tail(self.output)}")

    def stop(self) -> None:
        """End the server's processes and no others: first with a request, then by force."""
        if self.alive:
            os.kill(self.pid, signal.SIGTERM)
            wait_until(lambda: not self.processes() and not self.alive, STOP_TIMEOUT)
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not wait_until(lambda: not self.processes() and not self.alive, STOP_TIMEOUT):
            raise CloudError(f"{self.folder.name} (process {self.pid}) cannot be stopped")
        self.pid = self.started = 0


# Configuration


def ini(sections: Mapping[str, Mapping[str, object]]) -> str:
    """The text of an OpenStack configuration file."""

    def text(value: object) -> str:
        if isinstance(value, (list, tuple)):
            value = ",".join(map(str, value))
        return str(value).replace("$", "$$")

    return "\n".join(
        f"[{section}]\n" + "".join(f"{name} = {text(value)}\n" for name, value in options.items())
        for section, options in sections.items()
    )


def keystone_config(folder: Path, options: CloudOptions) -> str:
    """The text of keystone.conf."""
    fernet = {"key_repository": folder / "fernet"}
    return ini(
        {
            "DEFAULT": {"log_file": folder / "keystone.log"},
            "database": {"connection": f"sqlite:///{folder / 'keystone.db'}"},
            # The window would let a service present a user's expired token for two more days.
            "token": {"provider": "fernet", "expiration": options.token_lifetime, "allow_expired_window": 0},
            "fernet_tokens": fernet,
            "fernet_receipts": fernet,
            "credential": {"key_repository": folder / "credential"},
            # Without a cache each request takes half a second. It is the process's own: one worker only.
            "cache": {"enabled": True, "backend": "dogpile.cache.memory"},
            "identity": {"password_hash_algorithm": "bcrypt", "password_hash_rounds": 4},
        }
    )


def glance_config(folder: Path, options: CloudOptions, urls: Mapping[str, str], ca_cert: Path | None) -> str:
    """The text of glance-api.conf."""
    stores = {name: {"filesystem_store_datadir": folder / name} for name in options.stores}
    reserved = {f"os_glance_{name}_store": {"filesystem_store_datadir": folder / name} for name in ("staging", "tasks")}
    return ini(
        {
            "DEFAULT": {
                "log_file": folder / "glance.log",
                "enabled_backends": [f"{name}:file" for name in options.stores],
                "enabled_import_methods": "[glance-direct,web-download,copy-image]",
                "transport_url": "fake://",
                "node_staging_uri": f"file://{folder / 'staging'}",
                "image_cache_dir": folder / "cache",
                "public_endpoint": urls["glance"],
                "worker_self_reference_url": urls["glance"],
                "use_keystone_limits": options.size_quota is not None,
            },
            "database": {"connection": f"sqlite:///{folder / 'glance.db'}"},
            "glance_store": {"default_backend": options.stores[0]},
            **stores,
            **reserved,
            "paste_deploy": {"flavor": "keystone", "config_file": folder / "glance-api-paste.ini"},
            "oslo_concurrency": {"lock_path": folder / "lock"},
            "oslo_messaging_notifications": {"driver": "noop"},
            "keystone_authtoken": {
                "www_authenticate_uri": urls["keystone"],
                "auth_url": urls["keystone"],
                "auth_type": "password",
                "username": GLANCE_USER.name,
                "password": GLANCE_USER.password,
                "project_name": GLANCE_USER.project,
                "user_domain_id": "default",
                "project_domain_id": "default",
                "cafile": ca_cert or "",
                # Where tokens are to expire soon, ask Keystone about each one each time.
                "token_cache_time": 300 if options.token_lifetime >= 600 else -1,
                "service_token_roles": "service",
                "service_token_roles_required": True,
            },
            # Where Glance looks up its limits, and who it is there.
            "oslo_limit": {
                "auth_url": urls["keystone"],
                "auth_type": "password",
                "username": GLANCE_USER.name,
                "password": GLANCE_USER.password,
                "user_domain_id": "default",
                "system_scope": "all",
                "cafile": ca_cert or "",
                "endpoint_service_type": "image",
                "endpoint_region_name": REGION,
                "endpoint_interface": "public",
            },
        }
    )


def import_config(options: CloudOptions) -> str:
    """The text of glance-image-import.conf. Other ports than 80 and 443 are fine, too."""
    return ini(
        {"import_filtering_opts": {"allowed_hosts": f"[{','.join(options.import_hosts)}]", "allowed_ports": "[]"}}
    )


def clouds_config(auth_url: str, ca_cert: Path | None) -> str:
    """The text of clouds.yaml."""
    clouds = {}
    for user in USERS:
        clouds[user.name] = {
            "auth": {
                "auth_url": auth_url,
                "username": user.name,
                "password": user.password,
                "project_name": user.project,
                "user_domain_id": "default",
                "project_domain_id": "default",
            },
            "region_name": REGION,
            "identity_api_version": 3,
            **({"cacert": str(ca_cert)} if ca_cert else {}),
        }
    return "\n".join(yaml_lines({"clouds": clouds})) + "\n"


def yaml_lines(mapping: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """The lines of a YAML file with nested mappings. A plain value is written as JSON, which is YAML."""
    for name, value in mapping.items():
        if isinstance(value, Mapping):
            yield f"{indent}{name}:"
            yield from yaml_lines(value, indent + "  ")
        else:
            yield f"{indent}{name}: {json.dumps(value)}"


# Users, projects, roles and endpoints


class Identity:
    """The few calls of Keystone's API that make a cloud out of a fresh one."""

    def __init__(self, auth_url: str, web: urllib.request.OpenerDirector) -> None:
        """Log in as the administrator."""
        self.auth_url = auth_url
        self.web = web
        self.token = ""
        domain = {"id": "default"}
        user = {"name": ADMIN.name, "password": ADMIN.password, "domain": domain}
        auth = {
            "identity": {"methods": ["password"], "password": {"user": user}},
            "scope": {"project": {"name": ADMIN.project, "domain": domain}},
        }
        _answer, self.token = self.call("POST", "/auth/tokens", {"auth": auth})

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> tuple[Any, str]:
        """Send a request. Returns the answer's JSON and the token in its header, if there is one."""
        request = urllib.request.Request(
            self.auth_url + path,
            method=method,
            data=json.dumps(body).encode() if body is not None else None,
            headers={"Content-Type": "application/json", "X-Auth-Token": self.token},
        )
        try:
            with self.web.open(request, timeout=30) as answer:
                text = answer.read()
                return json.loads(text) if text else None, answer.headers.get("X-Subject-Token", "")
        except urllib.error.HTTPError as error:
            with error:
                raise CloudError(f"Keystone: {method} {path}: {error.code} {error.read().decode()}") from error

    def ensure(self, kind: str, name: str, **attributes: str) -> str:
        """The id of the user, project, role or service of that name, which is created if there is none."""
        found, _token = self.call("GET", f"/{kind}s?name={name}")
        if found[f"{kind}s"]:
            return str(found[f"{kind}s"][0]["id"])
        created, _token = self.call("POST", f"/{kind}s", {kind: {"name": name, **attributes}})
        return str(created[kind]["id"])

    def ensure_user(self, user: User) -> None:
        """Create a user, its project and its roles there."""
        project_id = self.ensure("project", user.project, domain_id="default")
        user_id = self.ensure("user", user.name, domain_id="default", password=user.password)
        for role in user.roles:
            self.call("PUT", f"/projects/{project_id}/users/{user_id}/roles/{self.ensure('role', role)}")

    def ensure_limits(self, size_quota: int) -> None:
        """Let a project's images take so many bytes, which Keystone counts in MiB, and Glance look that up."""
        user_id = self.ensure("user", GLANCE_USER.name)
        self.call("PUT", f"/system/users/{user_id}/roles/{self.ensure('role', 'reader')}")
        service_id = self.ensure("service", "glance", type="image")
        found, _token = self.call("GET", f"/registered_limits?service_id={service_id}")
        for limit in found["registered_limits"]:
            self.call("DELETE", f"/registered_limits/{limit['id']}")
        size = -(-size_quota // 1024**2)
        limits = {"size_total": size, "stage_total": size, "count_total": 1000, "count_uploading": 100}
        entries = [
            {"service_id": service_id, "region_id": REGION, "resource_name": f"image_{name}", "default_limit": value}
            for name, value in limits.items()
        ]
        self.call("POST", "/registered_limits", {"registered_limits": entries})

    def ensure_service(self, name: str, kind: str, public: str, internal: str) -> None:
        """Enter a service in the catalogue, or its addresses of today where it had other ones."""
        service_id = self.ensure("service", name, type=kind)
        found, _token = self.call("GET", f"/endpoints?service_id={service_id}")
        known = {endpoint["interface"]: endpoint for endpoint in found["endpoints"]}
        for interface, url in (("public", public), ("internal", internal), ("admin", public)):
            endpoint = {"service_id": service_id, "interface": interface, "url": url, "region_id": REGION}
            if interface not in known:
                self.call("POST", "/endpoints", {"endpoint": endpoint})
            elif known[interface]["url"] != url:
                self.call("PATCH", f"/endpoints/{known[interface]['id']}", {"endpoint": {"url": url}})


# The cloud


class EmbeddedCloud:
    """A Keystone and a Glance that are started and stopped together.

        with EmbeddedCloud(CloudOptions(state=tmp_path, venv=servers)) as cloud:
            connection = openstack.connect(cloud="demo")  # OS_CLIENT_CONFIG_FILE=cloud.clouds_yaml

    The state folder remembers all that matters, so that one process can start a cloud and another one
    stop it. A stopped cloud keeps its images and, where they are still free, its ports.
    """

    def __init__(self, options: CloudOptions | None = None) -> None:
        """Describe a cloud. Nothing happens before `start`."""
        self.options = options or CloudOptions()
        self._folder = StateFolder(self.options.state, "cloud", CloudError)
        self.state = self._folder.path
        self.keystone = Server(self.state / "keystone")
        self.glance = Server(self.state / "glance")
        self._running_options: dict[str, Any] = {}
        self._prepared = ""
        self._load()

    @property
    def servers(self) -> dict[str, Server]:
        """Both servers by name."""
        return {"keystone": self.keystone, "glance": self.glance}

    @property
    def clouds_yaml(self) -> Path:
        """The clouds.yaml with the clouds admin, demo, alt and reader."""
        return self.state / "clouds.yaml"

    @property
    def ca_cert(self) -> Path | None:
        """The certificate of the CA that signed the servers' one, None without TLS."""
        return self.state / "tls" / "ca.crt" if self._setting("tls") else None

    @property
    def auth_url(self) -> str:
        """Keystone's address."""
        return f"{self._base_url(self.keystone)}/v3"

    @property
    def image_url(self) -> str:
        """Glance's address."""
        return self._base_url(self.glance)

    @property
    def internal_image_url(self) -> str:
        """Glance's address in the cloud's internal network."""
        return self._base_url(self.glance, self._setting("internal_address") or HOST)

    @property
    def keystone_access_log(self) -> Path:
        """The requests to Keystone, see `read_access_log`."""
        return self.keystone.access_log

    @property
    def glance_access_log(self) -> Path:
        """The requests to Glance, see `read_access_log`."""
        return self.glance.access_log

    @property
    def running(self) -> bool:
        """Whether both servers run."""
        return all(server.alive for server in self.servers.values())

    @property
    def leftovers(self) -> bool:
        """Whether there is any process to stop, be it of a whole cloud or of one that died in part."""
        return any(server.processes() for server in self.servers.values())

    def runs_as_wanted(self) -> bool:
        """Whether there is nothing to start. A cloud that runs with other options is an error."""
        if self.running:
            self._require_same_options()
        return self.running

    def start(self) -> bool:
        """Start the cloud and wait until it can be used. False if it runs already, with the same options."""
        self._folder.make()
        with self._folder.locked():
            self._load()
            if self.runs_as_wanted():
                return False
            self._require_servers()
            self._stop_servers()
            try:
                self._start_servers()
            except BaseException:
                self._stop_servers()
                raise
            return True

    def stop(self) -> bool:
        """Stop the cloud, which keeps its state folder. False if nothing of it runs."""
        if self._folder.record is None:
            return False
        with self._folder.locked():
            self._load()
            left = self.leftovers
            self._stop_servers()
            return left

    def __enter__(self) -> EmbeddedCloud:
        """Start the cloud."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the cloud."""
        self.stop()

    # State

    def _load(self) -> None:
        """Read what the last process noted that started or stopped this cloud."""
        record = self._folder.record
        if record is None:
            return
        self._running_options = record["options"]
        self._prepared = record["prepared"]
        for name, server in self.servers.items():
            server.port, server.pid, server.started = (record[name][key] for key in ("port", "pid", "started"))

    def _save(self) -> None:
        record = {"options": self._running_options, "prepared": self._prepared}
        self._folder.note(record | {name: server.recorded() for name, server in self.servers.items()})

    def _setting(self, name: str) -> Any:
        """An option of the cloud as it runs, or else as it would be started."""
        return self._running_options.get(name, getattr(self.options, name))

    def _base_url(self, server: Server, host: str = HOST) -> str:
        if not server.port:
            raise CloudError(f"no cloud was started yet in {self.state}")
        return f"{'https' if self._setting('tls') else 'http'}://{host}:{server.port}"

    def _require_same_options(self) -> None:
        wanted = self.options.recorded()
        other = [name for name, value in wanted.items() if self._running_options.get(name) != value]
        if other:
            runs = ", ".join(f"{name}={self._running_options.get(name)} (not {wanted[name]})" for name in other)
            raise CloudError(f"the cloud in {self.state} already runs with {runs}: stop it first")

    def _require_servers(self) -> None:
        if not (self.options.bin_folder / "glance-manage").exists():
            raise CloudError(
                f"there is no Glance in {self.options.bin_folder.parent}; install it with\n"
                f"  {shlex.join([str(self._python), '-m', 'pip', 'install', '-r', str(HERE / 'requirements.txt')])}"
            )

    # Start and stop

    @property
    def _python(self) -> Path:
        return self.options.bin_folder / ("python" if self.options.venv else Path(sys.executable).name)

    def _environment(self) -> dict[str, str]:
        """The caller's environment without what would change the servers, or send them to a proxy."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("OS_", "PYTHON", "GUNICORN_"))}
        return {
            **inherited,
            "no_proxy": f"{HOST},localhost",
            "NO_PROXY": f"{HOST},localhost",
            "PYTHONWARNINGS": "ignore",
            "OS_KEYSTONE_CONFIG_DIR": str(self.keystone.folder),
            "OS_GLANCE_CONFIG_DIR": str(self.glance.folder),
            "IMAGEFERRY_RANGES": self.options.ranges,
        }

    def _web(self) -> urllib.request.OpenerDirector:
        """An HTTP client that trusts the cloud's CA and uses no proxy."""
        trust = ssl.create_default_context(cafile=self.ca_cert) if self.ca_cert else None
        return urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trust))

    def _start_servers(self) -> None:
        self._running_options = self.options.recorded()
        self._make_folders()
        with contextlib.ExitStack() as stack:
            listeners = {name: stack.enter_context(listen(server.port)) for name, server in self.servers.items()}
            for name, listener in listeners.items():
                self.servers[name].port = listener.getsockname()[1]
            self._save()
            if self.options.tls:
                hosts = list(filter(None, [self.options.internal_address]))
                self._run([self._python, HERE / "certificates.py", self.state / "tls", *hosts])
            self._write_configuration()
            fresh = self._prepared != self._recipe()
            if fresh:
                self._prepare_databases()
            self._launch(listeners)
            if fresh:
                self._manage_keystone("bootstrap", "--bootstrap-region-id", REGION)
        web = self._web()
        self.keystone.wait_ready(self.auth_url, web)
        self._populate(Identity(self.auth_url, web))
        self.glance.wait_ready(f"{self.image_url}/healthcheck", web)
        self._prepared = self._recipe()
        self._save()

    def _stop_servers(self) -> None:
        in_parallel(server.stop for server in self.servers.values())
        if self._folder.record is not None:
            self._save()

    def _launch(self, listeners: Mapping[str, socket.socket]) -> None:
        """Start both servers. Each is noted at once, so that nothing can be left behind."""
        certificate = {"certfile": str(self.state / "tls/server.crt"), "keyfile": str(self.state / "tls/server.key")}
        tls = certificate if self.options.tls else {}
        applications: dict[str, dict[str, Any]] = {
            "keystone": {"wsgi_app": "keystone.wsgi.api:application", "threads": 4},
            "glance": {"wsgi_app": "glance_app:application", "threads": 16, "pythonpath": str(HERE)},
        }
        for name, settings in applications.items():
            self.servers[name].launch(self._python, self._environment(), listeners[name], **settings, **tls)
            self._save()

    def _make_folders(self) -> None:
        subfolders = {
            self.keystone: ("fernet", "credential"),
            self.glance: ("staging", "tasks", "cache", "lock", *self.options.stores),
        }
        for server, names in subfolders.items():
            for name in names:
                (server.folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)

    def _write_configuration(self) -> None:
        urls = {"keystone": self.auth_url, "glance": self.image_url}
        paste = self.options.bin_folder.parent / "etc" / "glance" / "glance-api-paste.ini"
        files = {
            self.keystone.folder / "keystone.conf": keystone_config(self.keystone.folder, self.options),
            self.glance.folder / "glance-api.conf": glance_config(self.glance.folder, self.options, urls, self.ca_cert),
            self.glance.folder / "glance-image-import.conf": import_config(self.options),
            self.glance.folder / "glance-api-paste.ini": paste.read_text(encoding="utf-8"),
            self.clouds_yaml: clouds_config(self.auth_url, self.ca_cert),
        }
        for path, text in files.items():
            write_private(path, text)

    # What a new cloud needs

    @staticmethod
    def _recipe() -> str:
        """Changes with the servers' versions: their databases have to be made, or migrated, once for each."""
        return hashlib.sha256((HERE / "requirements.txt").read_bytes()).hexdigest()

    def _prepare_databases(self) -> None:
        """Make keys and databases: commands that take seconds each, most of it to load, so all at once."""
        owner = ("--keystone-user", getpass.getuser(), "--keystone-group", grp.getgrgid(os.getgid()).gr_name)
        glance_manage = self.options.bin_folder / "glance-manage"
        in_parallel(
            [
                lambda: self._manage_keystone("db_sync"),
                lambda: self._run([glance_manage, "--config-dir", self.glance.folder, "db", "sync"]),
                lambda: self._manage_keystone("fernet_setup", *owner),
                lambda: self._manage_keystone("credential_setup", *owner),
            ]
        )

    def _manage_keystone(self, *arguments: str) -> None:
        command = self.options.bin_folder / "keystone-manage"
        config = self.keystone.folder / "keystone.conf"
        self._run([command, "--config-file", config, *arguments], OS_BOOTSTRAP_PASSWORD=ADMIN.password)

    def _run(self, command: list[str | Path], **environment: str) -> None:
        """Run a command of the servers' virtual environment."""
        done = subprocess.run(
            command,
            env={**self._environment(), **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            end = "\n".join(done.stdout.splitlines()[-25:])
            raise CloudError(f"{shlex.join(map(str, command))} failed ({done.returncode}):\n{end}")

    def _populate(self, identity: Identity) -> None:
        """Create what is missing of users, projects, roles and the catalogue."""
        for user in (GLANCE_USER, *USERS):
            identity.ensure_user(user)
        identity.ensure_service("keystone", "identity", self.auth_url, self.auth_url)
        identity.ensure_service("glance", "image", self.image_url, self.internal_image_url)
        if self.options.size_quota is not None:
            identity.ensure_limits(self.options.size_quota)


def in_parallel(tasks: Iterable[Callable[[], None]]) -> None:
    """Run tasks at the same time and raise the first error once all have ended."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        futures = [pool.submit(task) for task in tasks]
    for future in futures:
        future.result()


# Command line


def show_started(cloud: EmbeddedCloud, seconds: float) -> None:
    """Say how to use the cloud, with commands that can be pasted."""
    openstack = shlex.quote(str(cloud.options.bin_folder / "openstack"))
    program = min(os.path.relpath(__file__), os.path.abspath(__file__), key=len)
    stop = shlex.join([sys.executable, program, "stop", *state_argument(cloud)])
    print(
        f"Glance    {cloud.image_url}   (ready in {seconds:.1f} s)\n"
        f"Keystone  {cloud.auth_url}\n"
        f"Clouds    {', '.join(user.name for user in USERS)}\n"
        f"Logs      {cloud.keystone.folder}\n"
        f"          {cloud.glance.folder}\n"
        "\nTry it:\n"
        f"  export OS_CLIENT_CONFIG_FILE={shlex.quote(str(cloud.clouds_yaml))}\n"
        f"  {openstack} --os-cloud demo image list\n"
        "\nStop it (images are kept):\n"
        f"  {stop}"
    )


def show_change(cloud: EmbeddedCloud, changed: bool) -> None:
    """Say for programs what was done, and where the cloud is if it was ever started."""
    started = bool(cloud.keystone.port)
    print(
        json.dumps(
            {
                "changed": changed,
                "clouds_yaml": str(cloud.clouds_yaml),
                "auth_url": cloud.auth_url if started else None,
                "image_url": cloud.image_url if started else None,
                "ca_cert": str(cloud.ca_cert) if cloud.ca_cert else None,
            }
        )
    )


def show_status(cloud: EmbeddedCloud) -> None:
    """Say what runs."""
    for name, server in cloud.servers.items():
        print(f"{name:9} {f'running on port {server.port}, process {server.pid}' if server.alive else 'stopped'}")
    if cloud.running:
        print(f"clouds    {cloud.clouds_yaml}")


def state_argument(cloud: EmbeddedCloud) -> list[str]:
    """The argument that names the cloud's state folder, none for the default one."""
    return [] if cloud.options.state == CloudOptions().state else ["--state", str(cloud.state)]


def names(text: str) -> tuple[str, ...]:
    """A list of names from a command line."""
    return tuple(filter(None, (name.strip() for name in text.split(","))))


def address(text: str) -> str | None:
    """A host name or address from a command line."""
    return text or None


def quota(text: str) -> int | None:
    """A quota from a command line."""
    return int(text) or None


def command_line() -> argparse.ArgumentParser:
    """The parser of the command line. A command's options are `CloudOptions` of the same names."""
    unset = argparse.SUPPRESS
    state = argparse.ArgumentParser(add_help=False, argument_default=unset)
    state.add_argument("--state", type=Path, metavar="DIR", help=f"the cloud's files (default: {CloudOptions().state})")
    parser = argparse.ArgumentParser(description="A real Glance and Keystone on loopback.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="start|stop|status")
    change = argparse.ArgumentParser(add_help=False)
    change.add_argument("--json", action="store_true", help="say for programs what was done")
    change.add_argument("--dry-run", action="store_true", help="only say what would be done, as --json does")
    start = commands.add_parser(
        "start", parents=[state, change], argument_default=unset, help="start the cloud and say how"
    )
    start.add_argument("--venv", type=Path, metavar="DIR", help="where the servers are installed (default: here)")
    start.add_argument("--tls", action=argparse.BooleanOptionalAction, help="serve HTTPS, with a CA of its own")
    start.add_argument("--internal-address", type=address, metavar="HOST", help="of the internal image endpoint")
    start.add_argument("--token-lifetime", type=int, metavar="SECONDS", help="until a token expires (default: 3600)")
    start.add_argument("--ranges", choices=RANGES, help="how downloads answer a Range header (default: serve)")
    start.add_argument("--stores", type=names, metavar="NAME,...", help="file stores (default: store1,store2)")
    start.add_argument(
        "--size-quota", type=quota, metavar="BYTES", help="for the images of one project (default: 0, none)"
    )
    start.add_argument("--import-hosts", type=names, metavar="HOST,...", help="for web-download (default: loopback)")
    commands.add_parser("stop", parents=[state, change], argument_default=unset, help="stop it and keep its files")
    commands.add_parser("status", parents=[state], argument_default=unset, help="exit code 0 if it runs, 3 if not")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command line program."""
    options = vars(command_line().parse_args(arguments))
    command, for_programs, dry_run = options.pop("command"), options.pop("json", False), options.pop("dry_run", False)
    try:
        cloud = EmbeddedCloud(CloudOptions(**options))
        if command == "status":
            show_status(cloud)
            return 0 if cloud.running else 3
        began = time.monotonic()
        if dry_run:
            changed = not cloud.runs_as_wanted() if command == "start" else cloud.leftovers
        else:
            changed = cloud.start() if command == "start" else cloud.stop()
        if for_programs or dry_run:
            show_change(cloud, changed)
        elif command == "start":
            show_started(cloud, time.monotonic() - began)
    except (CloudError, ValueError) as error:
        print(f"embedded_cloud: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
