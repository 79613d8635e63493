# SPDX-License-Identifier: GPL-3.0-or-later
"""glance_image_import against a real Glance."""

from __future__ import annotations

import contextlib
import grp
import hashlib
import os
import pwd
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import Playbook, openstack, running_cloud, upload
from faulty_proxy import FileServer


@pytest.mark.parametrize("name", ["disk-raw", "disk-qcow2"])
def test_an_image_becomes_a_verified_file_once(import_image, images, tmp_path, name):
    path = tmp_path / "volume"
    task = f"cloud: demo\nimage: {name}\npath: {path}\nmode: '0640'"

    predicted = import_image(task, "--check")
    assert predicted["changed"] and not path.exists()

    first = import_image(task)
    assert first["changed"] and path.read_bytes() == images[name].read_bytes()
    assert os.stat(path).st_mode & 0o777 == 0o640
    assert first["transfer"]["bytes"] == path.stat().st_size
    assert predicted["diff"] == first["diff"]
    assert sorted(os.listdir(path.parent)) == ["play", "volume"]

    path.write_bytes(b"written by a guest" + path.read_bytes()[18:])
    second = import_image(task)
    assert not second["changed"] and path.read_bytes().startswith(b"written by a guest")


def test_zeros_become_holes(import_image, images, tmp_path):
    result = import_image(f"cloud: demo\nimage: disk-raw\npath: {tmp_path}/volume")
    with open(images["disk-raw"], "rb") as file:
        blocks = sum(any(block) for block in iter(lambda: file.read(65536), b""))
    assert result["volume"]["allocated"] <= blocks * 65536 * 1.01
    assert result["transfer"]["zero_bytes"] == result["volume"]["size"] - blocks * 65536


def test_what_glance_knows_of_an_image_stays_with_the_volume(import_image, cloud, images, tmp_path):
    properties = {"hw_disk_bus": "scsi", "os_distro": "debian", "architecture": "x86_64", "description": "ä" * 250}
    options = ["--tag=golden", *(f"--property={name}={value}" for name, value in properties.items())]
    upload(cloud, "with-metadata", images["disk-raw"], "raw", "--min-ram=256", *options)
    task = f"cloud: demo\nimage: with-metadata\npath: {tmp_path}/volume"
    import_image(task)
    metadata = import_image(task)["volume"]["provenance"]["metadata"]
    assert metadata == {**properties, "tags": ["golden"], "min_ram": 256, "min_disk": 0}


def bodies(cloud):
    """How many whole images Glance has sent."""
    return sum("/file" in line and " 200 " in line for line in cloud.glance_access_log.read_text().splitlines())


def test_something_else_is_not_overwritten_unless_asked(import_image, cloud, images, tmp_path):
    path = tmp_path / "volume"
    path.write_text("precious")
    path.chmod(0o640)
    os.chown(path, 65534, 65534)
    task = f"cloud: demo\nimage: disk-qcow2\npath: {path}"
    assert import_image(task)["error"] == "volume_exists"
    assert path.read_text() == "precious"

    fetched = bodies(cloud)
    with open(path, "rb"):
        assert import_image(task + "\noverwrite: different")["error"] == "volume_in_use"
    assert path.read_text() == "precious" and bodies(cloud) == fetched

    assert import_image(task + "\noverwrite: different")["changed"]
    assert path.read_bytes() == images["disk-qcow2"].read_bytes()
    assert (path.stat().st_uid, path.stat().st_gid, path.stat().st_mode & 0o777) == (65534, 65534, 0o640)


def test_the_same_content_is_adopted(import_image, images, tmp_path):
    path = tmp_path / "volume"
    path.write_bytes(images["disk-qcow2"].read_bytes())
    before = path.stat().st_ino
    task = f"cloud: demo\nimage: disk-qcow2\npath: {path}"
    assert import_image(task)["msg"].startswith("Adopted") and path.stat().st_ino == before
    assert not import_image(task)["changed"]


@pytest.mark.parametrize(
    ("image", "options", "error"),
    [
        ("a-lie", "", "format_mismatch"),
        ("nowhere", "", "image_not_found"),
        ("twice", "", "image_ambiguous"),
        ("disk-qcow2", "format: iso", "unsupported_format"),
        ("disk-qcow2", "format: raw\ncompress: zstd", "invalid_option"),
        ("disk-qcow2", "size: large", "invalid_option"),
        ("disk-qcow2", "max_virtual_size: 1MiB", "image_too_large"),
    ],
)
def test_what_cannot_be_carried_is_refused_before_a_byte_lands(import_image, tmp_path, image, options, error):
    result = import_image(f"cloud: demo\nimage: {image}\npath: {tmp_path}/volume\n{options}")
    assert result["failed"] and result["error"] == error
    assert os.listdir(tmp_path) == ["play"]


def test_the_newest_of_several_can_be_asked_for(import_image, tmp_path):
    assert import_image(f"cloud: demo\nimage: twice\nlatest: true\npath: {tmp_path}/volume")["changed"]


def test_a_cloud_that_is_not_described_is_named(import_image, tmp_path):
    result = import_image(f"cloud: nowhere\nimage: disk-raw\npath: {tmp_path}/volume")
    assert result["error"] == "cloud_not_found" and "nowhere" in result["msg"]


def test_many_hosts_ask_the_cloud_once(import_image, cloud, tmp_path):
    before = len(cloud.glance_access_log.read_text().splitlines())
    keystone = len(cloud.keystone_access_log.read_text().splitlines())
    outcomes = import_image(
        f"cloud: demo\nimage: disk-qcow2\npath: '{tmp_path}/{{{{ inventory_hostname }}}}'", hosts=10
    )
    assert all(outcome["changed"] for outcome in outcomes.values())
    requests = cloud.glance_access_log.read_text().splitlines()[before:]
    bodies = [line for line in requests if "/file" in line and " 206 " not in line]
    assert len(bodies) == 10 and len(requests) - len(bodies) <= 5
    # Glance checks the token with Keystone as well; both together stay far below one request for each host.
    assert len(cloud.keystone_access_log.read_text().splitlines()) - keystone <= 6


def test_secrets_are_not_shown(import_image, tmp_path):
    import_image(f"cloud: demo\nimage: disk-qcow2\npath: {tmp_path}/volume", "-vvvv")
    assert "gAAAA" not in import_image.output and "demo-pw" not in import_image.output


def test_two_imports_to_one_path_agree(import_image, images, tmp_path):
    outcomes = import_image(f"cloud: demo\nimage: disk-raw\npath: {tmp_path}/volume", hosts=3)
    assert sorted(outcome["changed"] for outcome in outcomes.values()) == [False, False, True]
    assert subprocess.run(["cmp", images["disk-raw"], tmp_path / "volume"], check=False).returncode == 0


@pytest.fixture
def web_server(images):
    server = FileServer(images["disk-raw"].parent)
    yield server
    server.stop()


def sha512(path):
    return hashlib.sha512(path.read_bytes()).hexdigest()


def test_any_http_server_will_do(import_image, web_server, images, tmp_path):
    address = web_server.url("/disk.qcow2").replace("//", "//me:secret-password@")
    task = (
        f"url: {address}?signature=secret-query\nsource_format: qcow2\npath: {tmp_path}/volume\n"
        f"checksum: sha512:{sha512(images['disk-qcow2'])}\nheaders: {{X-Key: secret-header}}"
    )
    assert import_image(task, "--check")["changed"]
    result = import_image(task, "-vvvv", "--diff")
    assert result["changed"] and (tmp_path / "volume").read_bytes() == images["disk-qcow2"].read_bytes()
    assert result["image"]["url"] == web_server.url("/disk.qcow2")
    assert "invocation" in import_image.output and "secret-" not in import_image.output
    again = import_image(task)
    assert not again["changed"] and again["volume"]["provenance"]["source"] == web_server.url("/disk.qcow2")


def test_a_list_of_hashes_will_do_as_a_checksum(import_image, web_server, images, tmp_path):
    (web_server.folder / "SHA512SUMS").write_text(f"{sha512(images['disk-qcow2'])}  disk.qcow2\n")
    task = f"url: {web_server.url('/disk.qcow2')}\nsource_format: qcow2\npath: {tmp_path}/volume\n"
    signed = f"{web_server.url('/SHA512SUMS')}?signature=secret-query"
    assert import_image(f"{task}checksum: sha512:{signed}", "-vvvv")["changed"]
    assert "invocation" in import_image.output and "secret-" not in import_image.output

    (web_server.folder / "SHA512SUMS").write_text(f"{sha512(images['disk-qcow2'])}  other.qcow2\n")
    result = import_image(f"{task}checksum: sha512:{web_server.url('/SHA512SUMS')}\noverwrite: always")
    assert result["error"] == "unverifiable"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ("checksum: sha512:" + "0" * 128, "checksum_mismatch"),
        ("", "unverifiable"),
        ("checksum: sha512:" + "0" * 128 + "\nimage: disk-raw", "invalid_option"),
        ("checksum: what", "invalid_option"),
        ("allow_unverified: true\nsource_format: raw", "format_mismatch"),
        ("allow_unverified: true\nsource_format: iso", "format_mismatch"),
        ("allow_unverified: true\nurl: ftp://127.0.0.1/disk.qcow2", "invalid_option"),
    ],
)
def test_what_a_web_server_offers_is_not_trusted(import_image, web_server, tmp_path, options, error):
    chosen = {"url": web_server.url("/disk.qcow2"), "source_format": "qcow2", "path": f"{tmp_path}/volume"}
    chosen.update(yaml.safe_load(options) or {})
    result = import_image(yaml.safe_dump(chosen))
    assert result["failed"] and result["error"] == error, result
    assert os.listdir(tmp_path) == ["play"]


def test_an_unverified_image_is_carried_when_allowed(import_image, web_server, images, tmp_path):
    task = (
        f"url: {web_server.url('/disk.qcow2')}\nsource_format: qcow2\npath: {tmp_path}/volume\nallow_unverified: true"
    )
    result = import_image(task)
    assert result["changed"] and result["volume"]["provenance"]["hash_value"] is None
    assert not import_image(task)["changed"]


def test_an_image_with_md5_alone_is_carried_when_allowed_and_verified_by_it(import_image, cloud, images, tmp_path):
    """As older releases of Glance left them."""
    content = images["disk-qcow2"].read_bytes()
    image_id = upload(cloud, "with-md5", images["disk-qcow2"], "qcow2")
    task = f"cloud: demo\nimage: with-md5\npath: {tmp_path}/volume"

    def hashed(algorithm, value):
        database(
            cloud, "UPDATE images SET os_hash_algo = ?, os_hash_value = ? WHERE id = ?", algorithm, value, image_id
        )

    hashed(None, None)
    refused = import_image(task)
    assert refused["error"] == "unverifiable" and "md5" in refused["msg"], refused
    hashed("md5", hashlib.md5(content).hexdigest())
    (tmp_path / "volume").write_bytes(content)
    assert import_image(task)["error"] == "volume_exists"
    hashed("md7", "00ff")
    result = import_image(f"{task}\nallow_unverified: true\noverwrite: always")
    assert result["changed"] and result["volume"]["provenance"]["hash_algo"] == "md5"

    database(cloud, "UPDATE images SET checksum = ? WHERE id = ?", "0" * 32, image_id)
    task = f"cloud: demo\nimage: with-md5\npath: {tmp_path}/other"
    result = import_image(f"{task}\nallow_unverified: true")
    assert result["error"] == "checksum_mismatch" and not (tmp_path / "other").exists()

    database(cloud, "UPDATE images SET checksum = NULL, os_hash_value = NULL WHERE id = ?", image_id)
    assert import_image(task)["error"] == "unverifiable"
    assert import_image(task + "\nallow_unverified: true")["changed"]


def database(cloud, statement, *values):
    with contextlib.closing(sqlite3.connect(cloud.glance.folder / "glance.db", timeout=20)) as connection:
        connection.execute(statement, values)
        connection.commit()


def test_an_iso_is_carried_as_it_is(import_image, cloud, tmp_path):
    iso = Path("/usr/lib/ipxe/ipxe.iso")
    upload(cloud, "an-iso", iso, "iso")
    result = import_image(f"cloud: demo\nimage: an-iso\npath: {tmp_path}/boot.iso\nformat: iso")
    assert result["changed"] and (tmp_path / "boot.iso").read_bytes() == iso.read_bytes()
    assert result["volume"]["format"] == "iso"


def test_attributes_are_those_of_any_file(import_image, tmp_path):
    task = f"cloud: demo\nimage: disk-qcow2\npath: {tmp_path}/volume\nowner: nobody\ngroup: nogroup\n"
    result = import_image(task + "mode: u=rw,go=")
    status = os.stat(tmp_path / "volume")
    assert (status.st_mode & 0o777, result["changed"]) == (0o600, True)
    assert (pwd.getpwuid(status.st_uid).pw_name, grp.getgrgid(status.st_gid).gr_name) == ("nobody", "nogroup")

    predicted = import_image(task + "mode: '0640'", "--check", "--diff")
    assert predicted["changed"] and os.stat(tmp_path / "volume").st_mode & 0o777 == 0o600
    changed = import_image(task + "mode: '0640'", "--diff")
    assert changed["changed"] and changed["diff"] == predicted["diff"]
    assert changed["diff"]["after"]["mode"] == "0640" and "transfer" not in changed
    assert not import_image(task + "mode: '0640'")["changed"]


def test_an_image_that_changed_is_another_image(import_image, cloud, images, tmp_path):
    for name in ("disk-qcow2", "disk-raw"):
        upload(cloud, "moving", images[name], images[name].suffix[1:])
        task = f"cloud: demo\nimage: moving\nlatest: true\npath: {tmp_path}/volume\noverwrite: different"
        result = import_image(task, "--diff")
        assert result["changed"] and (tmp_path / "volume").read_bytes() == images[name].read_bytes()
        time.sleep(1)  # Glance's dates have seconds
    assert result["diff"]["before"]["format"] == "qcow2" and result["diff"]["after"]["format"] == "raw"
    assert result["msg"].startswith("Replaced")


def test_tls_is_checked_by_the_host_too(tmp_path, disk_files):
    with running_cloud(tmp_path / "cloud", tls=True) as cloud:
        upload(cloud, "disk", disk_files["disk-qcow2"], "qcow2")
        run = Playbook(tmp_path / "play", cloud)
        task = f"cloud: demo\nimage: disk\npath: {tmp_path}/volume"
        assert run(task)["changed"]
        assert (
            run(task + "\noverwrite: always\nca_cert: /etc/ssl/certs/ca-certificates.crt")["error"] == "tls_untrusted"
        )
        plain = f"url: {cloud.image_url}/\nsource_format: raw\nallow_unverified: true\npath: {tmp_path}/other"
        assert run(plain)["error"] == "tls_untrusted"


@pytest.fixture
def hostile(cloud, disk_files, tmp_path):
    """An image that became dangerous in its store: Glance itself takes none with a backing file any more."""
    image_id = upload(cloud, "hostile", disk_files["disk-qcow2"], "qcow2")
    bad = tmp_path / "bad.qcow2"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", "/etc/passwd", "-F", "raw", bad, "64M"], check=True
    )
    stored = cloud.glance.folder / "store1" / image_id
    with stored.open("r+b") as file:
        file.write(bad.read_bytes()[: 64 * 1024])
    bad.unlink()
    yield image_id
    openstack(cloud, "image", "delete", image_id)


def test_a_hostile_image_is_refused_before_a_byte_lands(import_image, find_images, cloud, hostile, tmp_path):
    (found,) = find_images(f"cloud: demo\nimage: {hostile}\ninspect: always")["glance_images"]
    assert found["safety"]["verdict"] == "unsafe" and "backing file" in found["safety"]["reason"]

    bodies = cloud.glance_access_log.read_text().count(f"{hostile}/file")
    result = import_image(f"cloud: demo\nimage: {hostile}\npath: {tmp_path}/volume")
    assert result["error"] == "unsafe_image" and os.listdir(tmp_path) == ["play"]
    assert cloud.glance_access_log.read_text().count(f"{hostile}/file") == bodies + 1, "only its header was read"


def test_a_hostile_image_is_refused_by_the_host_too(import_image, web_server, tmp_path):
    bad = web_server.folder / "bad.qcow2"
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", "/etc/passwd", "-F", "raw", bad, "64M"], check=True
    )
    task = f"url: {web_server.url('/bad.qcow2')}\nsource_format: qcow2\npath: {tmp_path}/volume\n"
    result = import_image(f"{task}checksum: sha512:{sha512(bad)}")
    assert result["error"] == "unsafe_image" and os.listdir(tmp_path) == ["play"]


def test_the_playbook_imports_and_sums_up(import_image, cloud, images, tmp_path):
    command = [import_image.program, "imageferry.glance.import_image", "-i", "host0,", "-c", "local"]
    command += ["-e", f"ansible_python_interpreter={sys.executable}", "-e", "cloud=demo"]

    def play(*arguments):
        run = subprocess.run(
            [*command, *arguments], env=import_image.environment, capture_output=True, text=True, check=False
        )
        return run.returncode, run.stdout + run.stderr

    where = f"path={tmp_path}/volume"
    assert play("-e", "image=disk-qcow2", "-e", where, "--check")[0] == 0 and not (tmp_path / "volume").exists()
    code, output = play("-e", "image=disk-qcow2", "-e", where, "-e", "file_mode=0640")
    assert code == 0 and "host0  changed  Imported: " in output, output
    assert (tmp_path / "volume").stat().st_mode & 0o777 == 0o640
    code, output = play("-e", "image=disk-qcow2", "-e", where, "-e", "file_mode=0640")
    assert code == 0 and "host0  ok       Nothing to do: " in output and "changed=0" in output
    code, output = play("-e", "image=nowhere", "-e", where)
    assert code == 2 and f"host0  failed   {tmp_path}/volume: No image has the id or name 'nowhere'." in output
    assert "Say what to import" in play("-e", "image=disk-qcow2")[1]


def test_a_host_moves_no_more_than_it_may(import_image, tmp_path):
    result = import_image(f"cloud: demo\nimage: disk-qcow2\npath: {tmp_path}/volume\nrate_limit: 2MiB/s")
    assert result["changed"] and result["transfer"]["rate"] <= 2.1 * 1024**2
    assert (
        import_image(f"cloud: demo\nimage: disk-qcow2\npath: {tmp_path}/other\nrate_limit: 5")["error"]
        == "invalid_option"
    )
