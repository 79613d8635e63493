# SPDX-License-Identifier: GPL-3.0-or-later
"""By which address, and with which certificate, hosts reach a real Glance."""

from __future__ import annotations

import subprocess

import pytest
from conftest import CLOUD_VENV, ROOT, openstack, through_proxy, wait_for
from faulty_proxy import Fault, FaultyProxy

MIB = 1024**2


@pytest.fixture
def internal(cloud):
    """A way to Glance that the catalogue names as the internal one."""
    proxy = FaultyProxy(cloud.image_url)
    arguments = ("endpoint", "list", "--service=image", "--interface=internal", "-f", "value", "-c", "ID")
    endpoint = openstack(cloud, *arguments, user="admin")
    openstack(cloud, "endpoint", "set", f"--url={proxy.url()}", endpoint, user="admin")
    yield proxy
    openstack(cloud, "endpoint", "set", f"--url={cloud.internal_image_url}", endpoint, user="admin")
    proxy.stop()


def test_hosts_fetch_from_the_endpoint_of_their_own_network(import_image, images, internal, tmp_path):
    task = f"cloud: demo\nimage: disk-qcow2\npath: {tmp_path}/"
    assert import_image(f"{task}one\nhost_interface: public")["changed"]
    assert internal.seen == []
    assert import_image(f"{task}two\nhost_interface: internal")["changed"]
    assert [seen.path.rsplit("/", 1)[-1] for seen in internal.seen] == ["file"], "only the host came this way"
    assert (tmp_path / "two").read_bytes() == images["disk-qcow2"].read_bytes()


@pytest.fixture
def certificates(tmp_path):
    """Certificates of a server and a client, and who signed them."""
    folder = tmp_path / "certificates"
    subprocess.run([CLOUD_VENV / "bin" / "python", ROOT / "tests" / "cloud" / "certificates.py", folder], check=True)
    (folder / "server.pem").write_text((folder / "server.crt").read_text() + (folder / "server.key").read_text())
    return folder


@pytest.fixture
def front(cloud, certificates):
    """A way to Glance for clients that have a certificate."""
    proxy = FaultyProxy(cloud.image_url, certificates / "server.pem", certificates / "ca.crt")
    yield proxy
    proxy.stop()


def test_a_client_certificate_reaches_the_host_as_private_files_and_leaves_no_trace(
    import_image, cloud, front, images, certificates, tmp_path
):
    rest = f"image: disk-qcow2\npath: {tmp_path}/volume\n"
    remarked = certificates / "remarked.crt"
    remarked.write_text(f"# Zürich\n{(certificates / 'ca.crt').read_text()}", encoding="utf-8")
    trusted = {"cacert": str(remarked)}
    assert import_image(through_proxy(cloud, front, **trusted) + rest)["failed"] and front.seen == []

    # The first GET is the controller's look at the image's header.
    front.programme(Fault(), Fault(rate=images["disk-qcow2"].stat().st_size // 3))
    shown = {"cert": f"{certificates}/client.crt", "key": f"{certificates}/client.key"}
    run = import_image.start(through_proxy(cloud, front, **trusted, **shown) + rest, "-vvvv")
    files = wait_for(lambda: len(found := private_files(import_image)) == 2 and found)
    assert {path.name: path.stat().st_mode & 0o777 for path in files} == {
        "_client_cert.pem": 0o600,
        "_client_key.pem": 0o600,
    }
    assert files[0].read_text() == (certificates / "client.crt").read_text()
    result = import_image.finish(run)
    assert result["changed"] and (tmp_path / "volume").read_bytes() == images["disk-qcow2"].read_bytes()
    assert private_files(import_image) == []
    for file in ("client.crt", "client.key"):
        assert (certificates / file).read_text().splitlines()[1] not in import_image.output


def private_files(playbook):
    return sorted((playbook.home / ".ansible" / "tmp").rglob("_client_*.pem"))
