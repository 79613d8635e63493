# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbooks as an operator starts them, on several hosts, with variables and no YAML but a list of images."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import HOST_PYTHON, ROOT, Playbook, connect, qemu_img, qemu_io
from faulty_proxy import Fault, FaultyProxy, FileServer

HOST = "ansible_connection=local ansible_python_interpreter="


@pytest.fixture
def run(tmp_path, cloud, images):
    """Runs a playbook on the hosts one, two and three; returns its summary, nothing where it did not come so far."""
    inventory = tmp_path / "inventory"
    inventory.write_text("".join(f"{name} {HOST}{HOST_PYTHON}\n" for name in ("one", "two", "three")))
    environment = {**os.environ, "HOME": str(tmp_path), "OS_CLOUD": "demo", "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
                   "OS_CLIENT_CONFIG_FILE": str(cloud.clouds_yaml)}  # fmt: skip
    environment.pop("PYTHONPATH", None)

    def run(playbook, *arguments, fails=False, **variables):
        named = playbook if isinstance(playbook, Path) else f"imageferry.glance.{playbook}"
        command = [Path(sys.prefix) / "bin" / "ansible-playbook", named, "-i", inventory, "-e", json.dumps(variables),
                   *arguments]  # fmt: skip
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        run.output = done.stdout + done.stderr
        assert (done.returncode != 0) == fails, run.output
        _before, _name, end = done.stdout.rpartition("TASK [Sum up]")
        return json.loads(end[end.index("{") : end.rindex("}") + 1])["msg"] if "TASK [Sum up]" in done.stdout else []

    run.environment = environment
    return run


def test_one_host_that_fails_does_not_stop_the_others(run, cloud, tmp_path):
    for name in ("one", "three"):
        (tmp_path / name).mkdir()
    wanted = {"image": "disk-qcow2", "path": f"{tmp_path}/{{{{ inventory_hostname }}}}/disk", "size": "", "vg": ""}
    before = len(cloud.glance_access_log.read_text().splitlines())
    summary = run("import_image", fails=True, **wanted)
    requests = cloud.glance_access_log.read_text().splitlines()[before:]
    assert len([line for line in requests if "/file" not in line]) <= 3, "the cloud is asked once for all hosts"
    assert [line.split()[:2] for line in summary[:-1]] == [["one", "changed"], ["two", "failed"], ["three", "changed"]]
    assert f"{tmp_path}/two" in summary[1] and "MiB in" in summary[0]
    assert summary[-1].startswith("2 changed, 0 ok, 1 failed; ")
    (tmp_path / "two").mkdir()
    assert run("import_image", **wanted)[-1].startswith("1 changed, 2 ok, 0 failed; "), "the others have it already"
    assert run("import_image", "--limit=one", fails=True, **{**wanted, "path": ""}) == []
    assert "Say what to import" in run.output
    secret = {"url": "http://me:secret-password@localhost/disk?signature=secret-query", "source_format": "raw",
              "latest": "false", "host_interface": "internal"}  # fmt: skip
    (told,) = run("import_image", "--limit=one", "-vvv", fails=True, path=f"{tmp_path}/other", **secret)
    assert "hash" in told and "http://localhost/disk" in run.output and "secret-" not in run.output


@pytest.mark.parametrize("throttle", [1, 2])
def test_no_more_hosts_fetch_at_once_than_the_play_lets(run, cloud, images, tmp_path, throttle):
    size = images["disk-qcow2"].stat().st_size
    proxy = FaultyProxy(cloud.image_url)
    proxy.programme(then=itertools.repeat(Fault(rate=size // 4)))  # four seconds each
    clouds = yaml.safe_load(cloud.clouds_yaml.read_text())
    clouds["clouds"]["demo"]["image_endpoint_override"] = proxy.url("/v2")
    config = tmp_path / "clouds.yaml"
    config.write_text(yaml.safe_dump(clouds))
    run.environment["OS_CLIENT_CONFIG_FILE"] = str(config)
    wanted = {"image_import_images": [{"image": "disk-qcow2", "path": f"{tmp_path}/{{{{ inventory_hostname }}}}"}]}
    play = {"hosts": "all", "gather_facts": False, "throttle": throttle, "vars": wanted,
            "roles": ["imageferry.glance.image_import"]}  # fmt: skip
    playbook = tmp_path / "playbook.yml"
    playbook.write_text(yaml.safe_dump([play]))
    try:
        run(playbook)
        assert all((tmp_path / name).stat().st_size == size for name in ("one", "two", "three"))
        assert proxy.most_at_once == throttle
    finally:
        proxy.stop()


@pytest.fixture
def web(tmp_path):
    """A web server with a disk, and what tells of it, in words of which some are secret."""
    folder = tmp_path / "web"
    folder.mkdir()
    (folder / "disk").write_bytes(b"1" * 2**20)
    server = FileServer(folder)
    digest = hashlib.sha256((folder / "disk").read_bytes()).hexdigest()
    url = server.url("/disk?signature=secret-query").replace("//", "//me:secret-password@", 1)
    yield {"url": url, "checksum": f"sha256:{digest}", "source_format": "raw"}
    server.stop()


def test_a_disk_of_a_web_server_is_not_told_of_with_its_secrets(run, web, tmp_path):
    wanted = {**web, "path": f"{tmp_path}/disk", "guest": "nobody", "headers": {"X-Token": "secret-header"}}
    playbook = tmp_path / "playbook.yml"
    play = {"hosts": "one", "gather_facts": False, "vars": {"image_import_images": [wanted]}}
    playbook.write_text(yaml.safe_dump([{**play, "roles": ["imageferry.glance.image_import"]}]))
    run(playbook, "-vvv", fails=True)
    assert (tmp_path / "disk").read_bytes() == b"1" * 2**20 and "nobody" in run.output
    assert "secret-" not in run.output


def test_each_of_several_playbooks_sums_up_what_it_has_done_itself(run, tmp_path):
    disk = {"path": f"{tmp_path}/disk", "source_format": ""}
    playbook = tmp_path / "playbook.yml"
    named = [("import_image", {"image": "disk-raw"}), ("export_volume", {"image_name": "chained"})]
    playbook.write_text(
        yaml.safe_dump([{"import_playbook": f"imageferry.glance.{name}", "vars": more} for name, more in named])
    )
    (told,) = run(playbook, "--limit=one", **disk)
    assert "Exported: there is no image 'chained'" in told and "Imported" in run.output


def test_hosts_hold_the_images_of_a_file(run, web, tmp_path):
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "foreign").write_bytes(b"somebody's")
    listed = tmp_path / "images.yml"
    images = [{"image": name, "path": f"{tmp_path}/library/{name}"} for name in ("disk-raw", "twice")]
    images.append({**web, "path": f"{tmp_path}/library/web"})
    listed.write_text(yaml.safe_dump({"image_sync_images": images}))
    predicted = run("sync_images", "--check", "--limit=one", images_file=str(listed))
    assert [line.split()[:4] for line in predicted[:3]] == [["one", "changed", "Would", "import:"]] * 3
    done = run("sync_images", "--limit=one", "--tags=image_sync_images", images_file=str(listed))
    assert done[-1].startswith("3 changed, 0 ok, 0 failed; ")
    pruning = tmp_path / "pruning.yml"
    pruning.write_text(yaml.safe_dump({"image_sync_images": images, "image_sync_prune": True}))
    again = run("sync_images", "--limit=one", images_file=str(pruning), prune=False)
    assert again[-1] == "0 changed, 3 ok, 0 failed.", "what is said for a run counts, also where it is false"
    run("sync_images", "--limit=one", fails=True)
    assert "Say which images" in run.output
    run("sync_images", "--limit=one", fails=True, images_file=str(listed), prune=True)
    assert "but not where" in run.output


def test_an_image_that_cannot_be_had_does_not_hide_what_became_of_the_others(run, tmp_path):
    listed = tmp_path / "images.yml"
    clone = {"path": f"{tmp_path}/clone"}
    images = [{"image": "disk-qcow2", "path": f"{tmp_path}/disk", "clones": [clone]},
              {"image": "nowhere", "path": f"{tmp_path}/nowhere"}]  # fmt: skip
    listed.write_text(yaml.safe_dump({"image_sync_images": images}))
    outcomes = []
    for check in (["--check"], [], []):
        told = run("sync_images", "--limit=one", *check, fails=True, images_file=str(listed))
        outcomes.append([line.split()[1] for line in told[:-1]])
        assert "clone" in told[1] and "No image has the id or name 'nowhere'" in told[2]
    assert outcomes == [["changed", "changed", "failed"], ["changed", "changed", "failed"], ["ok", "ok", "failed"]]


def test_old_backups_go_only_of_the_disks_that_were_backed_up(run, cloud, tmp_path):
    play = Playbook(tmp_path / "play", cloud, host_python=HOST_PYTHON)
    disks = [tmp_path / "first", tmp_path / "second"]
    for number, disk in enumerate(disks):
        disk.write_bytes(bytes([number]) * 4096)
    # Each was as the other is.
    before = [(disk, label, day) for day, order in ((1, disks[::-1]), (2, disks)) for disk, label in zip(order, disks)]
    play(
        "cloud: demo\nset: by-disk\nhost: one\nsource_format: raw\n"
        "path: '{{ item[0] }}'\nlabel: '{{ item[1] }}'\ntime: '2026-01-0{{ item[2] }}'",
        module="volume_backup",
        loop=[(str(disk), str(label), day) for disk, label, day in before],
    )
    run("backup", "--limit=one", backup_set="by-disk", source_format="raw", path=str(disks[1]), keep_last=1)
    disks[0].write_bytes(b"new" * 4096)
    run("backup", "--limit=one", fails=True, backup_set="by-disk", source_format="raw", path=str(disks[0]), keep_last=0)
    assert "Nothing says what is to be kept" in run.output
    found = play("cloud: demo\nset: by-disk", module="backup_info")["backups"]
    assert [Path(point["disk"]).name for point in found] == ["first", "first", "second"]


def test_disks_are_exported(run, cloud, tmp_path):
    for name in ("one", "two"):
        qemu_img("create", "-f", "raw", tmp_path / name, "1M")
        qemu_io(tmp_path / name, "raw", "write -P 1 0 64k")
    name = f"{tmp_path.name} {{{{ inventory_hostname }}}}"
    wanted = {"image_name": name, "path": f"{tmp_path}/{{{{ inventory_hostname }}}}", "source_format": "raw", "vg": ""}
    predicted = run("export_volume", "--check", "--limit=one", **wanted)
    assert predicted[0].split(maxsplit=2)[2].startswith(f"Would export: there is no image '{tmp_path.name} one'")
    done = run("export_volume", fails=True, format="qcow2", **wanted)
    outcomes = [line.split()[:2] for line in done[:-1]]
    assert outcomes == [["one", "changed"], ["two", "changed"], ["three", "failed"]], done
    formats = {image.name: image.disk_format for image in connect(cloud).image.images()}
    assert [formats[f"{tmp_path.name} {host}"] for host in ("one", "two")] == ["qcow2", "qcow2"]
    assert run("export_volume", "--limit=one,two", **wanted)[-1] == "0 changed, 2 ok, 0 failed."
    run("export_volume", "--limit=one", fails=True, **{**wanted, "image_name": ""})
    assert "Say what the image is to be called" in run.output


def test_a_disk_is_restored_as_it_was(run, tmp_path):
    disk = tmp_path / "disk"
    qemu_img("create", "-f", "raw", disk, "8M")
    qemu_io(disk, "raw", "write -P 1 1M 1M")
    wanted = {"backup_set": "playbooks", "path": str(disk), "source_format": "raw", "keep_last": 1}
    assert "new in the set" in run("backup", "--check", "--limit=one", **wanted)[0]
    assert "new in the set" in run("backup", "--limit=one", "--tags=image_backup_disks", **wanted)[0]
    qemu_io(disk, "raw", "write -P 2 1M 1M")
    refused = run("restore", "--limit=one", fails=True, backup_set="playbooks", overwrite="")[0]
    assert "image_restore_overwrite: true" in refused
    asked = {"backup_set": "playbooks", "overwrite": True, "source_host": "one"}
    elsewhere = {**asked, "disk": str(disk), "path": f"{tmp_path}/copy"}
    assert "Would replace" in run("restore", "--check", "--limit=one", **asked)[0]
    assert "Replaced" in run("restore", "--limit=one", **asked)[0]
    assert "Nothing to do" in run("restore", "--limit=one", **asked)[0]
    assert "Imported" in run("restore", "--limit=two", **elsewhere)[0]
    for path in (disk, tmp_path / "copy"):
        qemu_io(path, "raw", "read -P 1 1M 1M")
    qemu_io(disk, "raw", "write -P 3 1M 1M")
    for check in ([], ["--check"]):
        written_to = run("restore", "--limit=one", *check, fails=True, backup_set="playbooks")[0]
        assert written_to.startswith("one  failed") and "image_restore_overwrite: true" in written_to
    run("restore", "--limit=two", fails=True, backup_set="nothing")
    assert "only backups of no disk" in run.output


def test_a_disk_is_restored_once_in_another_format(run, tmp_path):
    disk = tmp_path / "disk"
    disk.write_bytes(b"1" * 2**20)
    run("backup", "--limit=one", backup_set="format", path=str(disk), source_format="raw")
    restore = {
        "ansible.builtin.include_role": {"name": "imageferry.glance.image_restore"},
        "vars": {
            "image_restore_set": "format",
            "image_restore_overwrite": True,
            "image_restore_disks": [
                {"disk": str(disk), "path": f"{tmp_path}/{wanted}", "format": wanted} for wanted in ("qcow2", "keep")
            ],
        },
    }
    changes = {"ansible.builtin.debug": {"msg": "{{ image_restore_results | map(attribute='changed') }}"}}
    playbook = tmp_path / "playbook.yml"
    tasks = [restore, changes, restore, {"name": "Sum up", **changes}]
    playbook.write_text(yaml.safe_dump([{"hosts": "one", "gather_facts": False, "tasks": tasks}]))
    assert run(playbook) == [False, False]
    for path in ("qcow2", "keep"):
        assert json.loads(qemu_img("info", "--output=json", tmp_path / path))["format"] == "qcow2"
        assert "identical" in qemu_img("compare", "-f", "raw", "-F", "qcow2", disk, tmp_path / path)


def test_backups_that_went_are_in_the_summary_and_those_that_could_not_go(run, tmp_path):
    disk = tmp_path / "disk"
    wanted = {"backup_set": "pruned", "path": str(disk), "source_format": "raw", "protected": True}
    disk.write_bytes(bytes(2**20))
    run("backup", "--limit=one", **wanted)
    disk.write_bytes(b"1" * 2**20)
    kept = run("backup", "--limit=one", fails=True, **{**wanted, "keep_last": 1, "protected": False})
    assert [line.split()[1] for line in kept[:-1]] == ["changed", "failed"] and "protected" in kept[1]
    pruned = run("backup", "--limit=one", **wanted, keep_last=1)
    assert [line.split()[1:4] for line in pruned[1:-1]] == [["changed", "Removed", "1"]]


def test_a_host_that_is_lost_after_its_volumes_were_done_has_failed(run, tmp_path):
    playbook = tmp_path / "playbook.yml"
    template = ROOT / "playbooks" / "templates" / "transfer_summary.txt.j2"
    playbook.write_text(f"""
- hosts: all
  gather_facts: false
  tasks:
    - block:
        - set_fact: {{image_import_results: [{{changed: true, msg: Imported.}}]}}
        - fail:
          when: inventory_hostname == 'two'
      always:
        - name: Sum up
          debug: {{msg: "{{{{ lookup('template', '{template}').splitlines() }}}}"}}
          vars: {{summed_role: image_import}}
          run_once: true
""")
    assert [line.split()[:2] for line in run(playbook, fails=True)[:-1]] == [
        ["one", "changed"], ["two", "changed"], ["two", "failed"], ["three", "changed"],
    ]  # fmt: skip


@pytest.fixture(scope="module")
def isos(cloud):
    """Two ISOs in Glance: the least that passes for one."""
    glance = connect(cloud).image
    for number, name in enumerate(("playbooks-a", "playbooks-b")):
        image = glance.post("/images", json={"name": name, "disk_format": "iso", "container_format": "bare"}).json()
        content = bytes(0x8000) + b"\x01CD001\x01".ljust(0x8000, b"\0") + bytes([number])
        headers = {"Content-Type": "application/octet-stream"}
        glance.put(f"/images/{image['id']}/file", data=content, headers=headers).raise_for_status()


def test_a_library_has_the_isos_of_the_cloud(run, isos, tmp_path):
    library = {"folder": f"{tmp_path}/library", "image_name": "playbooks-?", "host_interface": ""}
    done = run("iso_library", "--limit=one", **library)
    assert [line.split()[:2] for line in done[:-1]] == [["one", "changed"]] * 2
    assert sorted(path.name for path in (tmp_path / "library").iterdir()) == ["playbooks-a.iso", "playbooks-b.iso"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "playbooks-a.iso").write_bytes(b"somebody's")
    partly = run("iso_library", "--limit=one", fails=True, **{**library, "folder": f"{tmp_path}/other"})
    outcomes = sorted(line.split()[1:3] for line in partly[:-1])
    assert outcomes[0] == ["changed", "Imported:"] and outcomes[1][0] == "failed"
    assert partly[-1] == "1 changed, 0 ok, 1 failed; 64.00 KiB moved."
    run("iso_library", "--limit=one", "--skip-tags=iso_library_isos", **library, prune=True)
    no_libvirt = {"ansible_python_interpreter": sys.executable}
    pruning = {**library, "image_name": "nothing", "prune": True, **no_libvirt}
    assert run("iso_library", "--limit=one", **pruning) == ["There is nothing to sum up."]
    assert len(list((tmp_path / "library").iterdir())) == 2, "one may be in a drive of a guest that nobody can ask for"
