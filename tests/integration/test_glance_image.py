# SPDX-License-Identifier: GPL-3.0-or-later
"""glance_image against a real Glance."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import subprocess

import pytest
import yaml
from conftest import InProject, Playbook, connect, openstack, running_cloud, upload, wait_for
from embedded_cloud import read_access_log
from faulty_proxy import FileServer

_BYTES = "application/octet-stream"
CONTENT = {name: hashlib.sha512(name.encode()).digest() * 40000 for name in ("one", "two")}  # 2.5 MB each


@pytest.fixture(scope="module")
def cloud(cloud, tmp_path_factory):
    """The cloud of all tests, but in a project in which nobody else leaves images."""
    return InProject(cloud, "image-module", tmp_path_factory.mktemp("image-module") / "clouds.yaml")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("content")
    for name, content in CONTENT.items():
        (folder / name).write_bytes(content)
    (folder / "SHA512SUMS").write_text(f"{sha512('one')}  one\n")
    return folder


@pytest.fixture(scope="module")
def web(files):
    """The address of a web server with the files."""
    server = FileServer(files)
    yield server.url("").rstrip("/")
    server.stop()


@pytest.fixture
def play(tmp_path, cloud):
    yield Tasks(tmp_path / "play", cloud)
    session = connect(cloud)
    for image in everything(cloud):
        if image["protected"]:
            session.image.update_image(image["id"], is_protected=False)
        session.image.delete_image(image["id"])


class Tasks(Playbook):
    """Runs several tasks of glance_image, one after the other."""

    def run(self, *tasks, check=False):
        """What each task returned.

        :param check: whether in check mode.
        """
        steps = [
            {"imageferry.glance.glance_image": task, "register": f"outcome{number}", "ignore_errors": True}
            for number, task in enumerate(tasks)
        ]
        outcomes = "{{ [" + ", ".join(step["register"] for step in steps) + "] }}"
        last = {"copy": {"dest": str(self.result), "content": outcomes}, "check_mode": False, "diff": False}
        inventory, playbook = self.folder / "inventory", self.folder / "playbook.yml"
        inventory.write_text(f"host0 ansible_connection=local ansible_python_interpreter={self.host_python}\n")
        playbook.write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": [*steps, last]}]))
        command = [self.program, "-i", inventory, playbook, *(["--check"] if check else [])]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        self.output = done.stdout + done.stderr
        assert done.returncode == 0, self.output
        return json.loads(self.result.read_text())


@pytest.fixture
def run(play):
    def run(task, check=False, **keywords):
        return play.run({"cloud": "demo", **task, **keywords}, check=check)[0]

    return run


@pytest.fixture
def carry_out(play, cloud):
    def carry_out(task, unknown=()):
        """What a task returns, after its check mode said the same and changed nothing; a second run changes nothing.

        :param unknown: what of the new image cannot be told in check mode, beside its id.
        """
        task = {"cloud": "demo", **task}
        before = recorded(cloud)
        (predicted,) = play.run(task, check=True)
        assert recorded(cloud) == before
        done, again = play.run(task, task)
        assert done["changed"] is predicted["changed"] is True, (predicted, done)
        hidden = dict.fromkeys(("id", *unknown))
        assert {**predicted["diff"]["after"], **hidden} == {**done["diff"]["after"], **hidden}
        assert predicted["diff"]["before"] == done["diff"]["before"]
        assert not again["changed"] and changes(again) == {}, again
        return done

    return carry_out


@pytest.fixture
def made(play, cloud, files):
    """An image with the content 'one', called 'base'."""
    session = connect(cloud).image
    record = {"name": "base", "tags": ["a"], "kept": "yes", "changed": "old", "gone": "x"}
    image = session.post("/images", json={**record, "disk_format": "raw", "container_format": "bare"}).json()
    session.put(f"/images/{image['id']}/file", data=CONTENT["one"], headers={"Content-Type": _BYTES})
    return image


class Requests:
    """The requests to Glance from now on."""

    def __init__(self, cloud):
        self._log = cloud.glance_access_log
        self._before = len(read_access_log(self._log))

    def are(self, expected, but=None):
        """Sees that these changed something, and no others; Glance may note the last, and some before, a moment late.

        :param but: the path of one before, beside the removal of what an earlier test has left.
        """

        def changing():
            seen = read_access_log(self._log)[self._before :]
            asked = [(each.method, each.path) for each in seen if each.method != "GET" and each.path != but]
            return [request for request in asked if request[0] != "DELETE" or request in expected]

        wait_for(lambda: len(changing()) >= len(expected))
        assert changing() == expected


def make(name, src, **options):
    return {"name": name, "src": str(src), "disk_format": "raw", **options}


def sha512(name):
    return hashlib.sha512(CONTENT[name]).hexdigest()


def everything(cloud):
    """All images of the project, hidden ones and those of any status among them."""
    session = connect(cloud)
    project = session.current_project_id
    pages = [session.image.get(f"/images?os_hidden={hidden}&owner={project}&limit=500") for hidden in ("false", "true")]
    return [image for page in pages for image in page.json()["images"]]


def content(cloud, image_id):
    return connect(cloud).image.get(f"/images/{image_id}/file").content


def recorded(cloud):
    """What may change of all images, in a form that can be compared."""
    return sorted(json.dumps(image, sort_keys=True) for image in everything(cloud))


def changes(result):
    before, after = result["diff"]["before"], result["diff"]["after"]
    return {name: after[name] for name in after if after[name] != before.get(name)}


def test_an_image_is_made_of_a_file(carry_out, cloud, files):
    options = {
        "tags": ["b", "a"], "properties": {"os_distro": "debian", "hw_cpu_cores": 4, "hw_agent": True},
        "min_disk": 1, "min_ram": 64, "visibility": "private", "protected": True,
        "checksum": f"sha512:{sha512('one')}",
    }  # fmt: skip
    result = carry_out(make("new", files / "one", **options))
    image = result["image"]
    (there,) = everything(cloud)
    assert image.items() >= there.items() and image["supported"] and image["safety"]["verdict"] == "unknown"
    assert content(cloud, image["id"]) == CONTENT["one"]
    assert (there["status"], there["os_hash_value"], there["size"]) == ("active", sha512("one"), len(CONTENT["one"]))
    assert (there["os_distro"], there["hw_cpu_cores"], there["hw_agent"]) == ("debian", "4", "True")
    assert (there["min_disk"], there["min_ram"], there["visibility"]) == (1, 64, "private")
    assert there["protected"] and not there["os_hidden"] and sorted(there["tags"]) == ["a", "b"]
    assert not [name for name in there if "imageferry" in name]
    assert result["diff"]["before"] == {} and result["diff"]["after"]["os_hash_value"] == sha512("one")


def test_what_is_not_said_is_as_glance_has_it(carry_out, cloud, files):
    carry_out(make("in:plain", files / "one"))
    (there,) = everything(cloud)
    assert (there["visibility"], there["protected"], there["os_hidden"]) == ("shared", False, False)


def test_what_is_there_is_not_sent_again(run, cloud, files):
    seen = Requests(cloud)
    task = make("counted", files / "one")
    path = f"/v2/images/{run(task)['image']['id']}"
    seen.are([("POST", "/v2/images"), ("PUT", f"{path}/file"), ("PATCH", path)])
    assert not run(task)["changed"]
    seen.are([("POST", "/v2/images"), ("PUT", f"{path}/file"), ("PATCH", path)])


def test_an_image_is_made_of_an_address(carry_out, run, cloud, web):
    task = {"name": "web", "url": f"{web}/one", "disk_format": "raw", "checksum": f"sha512:{web}/SHA512SUMS"}
    result = carry_out(task)
    assert content(cloud, result["image"]["id"]) == CONTENT["one"]
    without = run({**task, "checksum": None})
    assert not without["changed"]
    other = run({**task, "checksum": None, "url": f"{web}/two"})
    assert other["error"] == "image_exists"


def test_another_kind_of_hash_tells_as_well(run, cloud, web, files):
    for source in ({"url": f"{web}/one"}, {"src": str(files / "one")}):
        digest = hashlib.sha256(CONTENT["one"]).hexdigest()
        task = {"name": "other", "disk_format": "raw", "checksum": f"sha256:{digest}", **source}
        run(task)
        assert not run(task)["changed"]
    assert len(everything(cloud)) == 1


@pytest.mark.parametrize("mode", [False, True])
def test_a_wrong_checksum_leaves_nothing(run, cloud, files, mode):
    result = run(make("wrong", files / "one", checksum=f"sha512:{sha512('two')}"), check=mode)
    assert result["error"] == "checksum_mismatch" and everything(cloud) == []


def test_metadata_is_added_changed_and_removed(carry_out, cloud, made):
    task = {"name": "base", "properties": {"changed": "new", "added": "1", "gone": None}, "tags": ["b"], "min_disk": 3}
    result = carry_out(task)
    (there,) = everything(cloud)
    assert (there["changed"], there["added"], there["kept"], "gone" in there) == ("new", "1", "yes", False)
    assert sorted(there["tags"]) == ["a", "b"] and there["min_disk"] == 3
    assert sorted(changes(result)) == ["min_disk", "properties", "tags"]
    assert result["image"]["id"] == made["id"]


def test_purging_leaves_what_is_named_and_what_tools_noted(carry_out, cloud, made):
    session = connect(cloud)
    session.image.update_image(made["id"], **{"owner_specified.openstack.md5": "kept"})
    carry_out({"id": made["id"], "properties": {"only": "1"}, "purge_properties": True, "tags": [], "purge_tags": True})
    (there,) = everything(cloud)
    assert there["only"] == "1" and there["owner_specified.openstack.md5"] == "kept" and there["tags"] == []
    assert not {"kept", "changed", "gone"} & set(there)


def test_an_image_gets_another_name(carry_out, cloud, made):
    carry_out({"id": made["id"], "name": "renamed"})
    assert [image["name"] for image in everything(cloud)] == ["renamed"]


def test_what_is_no_property_is_refused(play, cloud, made):
    before = recorded(cloud)
    for_each = [{"size": "1"}, {"os_glance_x": "1"}, {"name": "x"}, {"a": {"b": "c"}}]
    results = play.run(*({"cloud": "demo", "name": "base", "min_disk": 9, "properties": some} for some in for_each))
    assert [result["error"] for result in results] == ["invalid_option"] * 4 and recorded(cloud) == before


def test_members_come_and_go(carry_out, run, cloud, made):
    def members():
        return sorted(member.member_id for member in connect(cloud).image.members(made["id"]))

    carry_out({"name": "base", "members": ["p1", "p2"]})
    carry_out({"name": "base", "members": ["p3"]})
    assert members() == ["p1", "p2", "p3"]
    carry_out({"name": "base", "members": ["p2"], "purge_members": True})
    assert members() == ["p2"]
    carry_out({"name": "base", "visibility": "private"})
    refused = run({"name": "base", "members": ["p4"]})
    assert refused["error"] == "invalid_option" and "private" in refused["msg"]
    assert run({"name": "base", "visibility": "shared", "members": ["p2", "p5"]})["changed"]
    assert members() == ["p2", "p5"]


def test_a_shared_image_is_made_with_its_members(carry_out, cloud, files):
    carry_out(make("shared", files / "one", visibility="shared", members=["p1"]))


def test_visibility_needs_a_role(carry_out, run, cloud, made):
    carry_out({"name": "base", "visibility": "community"})
    refused = run({"name": "base", "visibility": "public"})
    assert refused["error"] == "access_denied" and "PATCH" in refused["msg"]
    assert everything(cloud)[0]["visibility"] == "community"


def test_an_image_is_put_out_of_use_and_in_again(carry_out, cloud, made):
    carry_out({"name": "base", "active": False, "hidden": True})
    assert (everything(cloud)[0]["status"], everything(cloud)[0]["os_hidden"]) == ("deactivated", True)
    carry_out({"name": "base", "active": True, "hidden": False})
    assert (everything(cloud)[0]["status"], everything(cloud)[0]["os_hidden"]) == ("active", False)


def test_another_format_is_refused(run, cloud, made):
    refused = run({"name": "base", "disk_format": "qcow2"})
    assert refused["error"] == "invalid_option" and "upload another image" in refused["msg"]


def test_an_image_that_is_not_there_cannot_be_changed(run):
    assert run({"name": "nowhere", "min_disk": 1})["error"] == "image_not_found"


@pytest.mark.parametrize("by", ["id", "name"])
def test_an_image_is_removed(run, cloud, made, by):
    task = {"state": "absent", by: made[by]}
    before = recorded(cloud)
    predicted = run(task, check=True)
    assert predicted["changed"] and recorded(cloud) == before
    done = run(task)
    assert done["diff"] == predicted["diff"] and done["images"][0]["id"] == made["id"] and everything(cloud) == []
    assert not run(task)["changed"]


def test_a_protected_image_stays(run, cloud, made):
    run({"name": "base", "protected": True})
    for task in ({"name": "base"}, {"filter": {"name": "base*"}}):
        assert run({"state": "absent", **task})["error"] == "image_protected"
    assert everything(cloud)[0]["protected"]
    assert run({"state": "absent", "name": "base", "unprotect": True})["changed"] and everything(cloud) == []


def test_images_are_removed_by_what_they_are(run, cloud, files, made):
    for number in (1, 2):
        run(make(f"nightly-{number}", files / "one", tags=["ci"], hidden=number == 2))
    upload(cloud, "nightly-3", files / "two", "raw")
    assert run({"state": "absent", "filter": {}})["error"] == "invalid_option"
    assert run({"state": "absent", "filter": {"created_before": "2020-01-01T00:00:00Z"}})["changed"] is False
    assert run({"state": "absent", "filter": {"created_before": "30d"}})["error"] == "invalid_option"
    task = {"state": "absent", "filter": {"name": "nightly-*", "tags": ["ci"]}}
    predicted = run(task, check=True)
    assert len(everything(cloud)) == 4
    done = run(task)
    assert [image["name"] for image in done["images"]] == ["nightly-1"] and done["diff"] == predicted["diff"]
    assert run({"state": "absent", "filter": {"name": "nightly-*", "properties": {"os_hidden": "true"}}})["changed"]
    assert sorted(image["name"] for image in everything(cloud)) == ["base", "nightly-3"]
    assert not run(task)["changed"]


def test_a_filter_keeps_to_the_own_project(run, cloud, files):
    options = ("--disk-format", "raw", "--public", "--project", "alt", "-f", "value", "-c", "id")
    other = openstack(cloud, "image", "create", *options, "--file", files / "one", "theirs-1", user="admin")
    try:
        assert not run({"state": "absent", "filter": {"name": "theirs-*"}}, cloud="admin")["changed"]
        assert not run({"state": "absent", "name": "theirs-1"}, cloud="admin")["changed"]
    finally:
        openstack(cloud, "image", "delete", other, user="admin")


def test_several_of_a_name_are_told(run, cloud, files, made):
    run(make("base", files / "two", on_existing="new"))
    for task in ({"state": "absent"}, {"min_disk": 1}):
        result = run({"name": "base", **task})
        assert result["error"] == "image_ambiguous" and len(result["candidates"]) == 2
    again = run(make("base", files / "two", on_existing="new"))
    assert not again["changed"] and again["image"]["os_hash_value"] == sha512("two")


def test_other_content_is_refused_by_default(run, cloud, files, made):
    before = recorded(cloud)
    assert run(make("base", files / "two"))["error"] == "image_exists" and recorded(cloud) == before


def test_a_new_image_takes_the_old_ones_place(carry_out, run, cloud, files, made):
    run({"name": "base", "members": ["p1"]})
    task = make("base", files / "two", on_existing="replace", properties={"changed": "new"})
    result = carry_out(task)
    (there,) = everything(cloud)
    assert there["id"] == result["image"]["id"] != made["id"] and content(cloud, there["id"]) == CONTENT["two"]
    assert (there["kept"], there["changed"], there["tags"]) == ("yes", "new", ["a"])
    assert result["diff"]["after"]["members"] == ["p1"] and made["id"] in result["msg"]


def test_the_old_image_goes_last(run, cloud, files, made):
    """In the order in which Glance answered: the old one is removed when the new one is whole and visible."""
    seen = Requests(cloud)
    new = f"/v2/images/{run(make('base', files / 'two', on_existing='replace'))['image']['id']}"
    old = f"/v2/images/{made['id']}"
    seen.are([("POST", "/v2/images"), ("PUT", f"{new}/file"), ("PATCH", new), ("DELETE", old)], but=f"{old}/file")


def test_a_failed_replacement_leaves_the_old(run, cloud, files, made):
    before = recorded(cloud)
    task = make("base", files / "two", on_existing="replace", checksum=f"sha512:{sha512('one')[::-1]}")
    assert run(task)["error"] == "checksum_mismatch" and recorded(cloud) == before


def test_a_protected_image_is_not_replaced(run, cloud, files, made):
    run({"name": "base", "protected": True})
    task = make("base", files / "two", on_existing="replace")
    assert run(task)["error"] == "image_protected" and len(everything(cloud)) == 1
    assert run({**task, "unprotect": True})["changed"]
    (there,) = everything(cloud)
    assert there["protected"] and there["os_hash_value"] == sha512("two")


def test_glance_refuses_the_content(run, cloud, files):
    refused = run({**make("no-iso", files / "one"), "disk_format": "qcow2"})
    assert refused["error"] == "format_mismatch" and everything(cloud) == []


def test_an_id_can_be_chosen_once(run, cloud, files):
    chosen = "4fd5dd3c-5b6f-4a53-8d4b-0d2c34a5a2f1"
    assert run(make("chosen", files / "one", id=chosen))["image"]["id"] == chosen
    run({"state": "absent", "id": chosen})
    assert run(make("chosen", files / "one", id=chosen))["error"] == "image_conflict" and everything(cloud) == []


def test_a_reader_may_make_nothing(run, cloud, files):
    assert run(make("readers", files / "one"), cloud="reader")["error"] == "access_denied"


def test_a_quota_leaves_nothing_behind(tmp_path, tmp_path_factory, files):
    with running_cloud(tmp_path_factory.mktemp("quota"), size_quota=2 * 1024**2) as full:
        tasks = [{"cloud": "demo", **make(name, files / "one")} for name in ("first", "second")]
        first, second = Tasks(tmp_path / "play", full).run(*tasks)
        assert first["changed"] and second["error"] == "quota_exceeded", (first, second)
        assert [image["name"] for image in everything(full)] == ["first"]


def test_what_a_killed_run_left_goes(run, cloud, files):
    """Only what is old enough goes: what another run makes at the same time has just been changed."""
    mark = {"owner_specified.imageferry.upload": "left", "name": "left", "os_hidden": True}
    old, new = (connect(cloud).image.post("/images", json=mark).json()["id"] for _turn in range(2))
    age(cloud, old)
    run(make("left", files / "one"))
    assert {image["id"]: image["status"] for image in everything(cloud)}.get(old) is None
    assert sorted(image["status"] for image in everything(cloud)) == ["active", "queued"]
    assert new in [image["id"] for image in everything(cloud)]


@pytest.mark.parametrize("by", [{}, {"id": "7c1f1f5e-6f7b-4a53-8d4b-0d2c34a5a2f1"}])
def test_an_image_that_was_never_published_is_not_there_yet(run, cloud, files, by):
    """One that is named by its id is finished, as Glance never gives an id twice."""
    mark = {"owner_specified.imageferry.upload": "left", "name": "left", "os_hidden": True, "visibility": "private"}
    record = {**mark, **by, "disk_format": "raw", "container_format": "bare"}
    left = connect(cloud).image.post("/images", json=record).json()["id"]
    connect(cloud).image.put(f"/images/{left}/file", data=CONTENT["one"], headers={"Content-Type": _BYTES})
    age(cloud, left)
    task = make("left", files / "one", **by)
    assert run(task)["changed"] and not run(task)["changed"]
    (image,) = everything(cloud)
    assert (image["visibility"], image["os_hidden"]) == ("shared", False) and (image["id"] == left) == bool(by)
    assert not [name for name in image if "imageferry" in name]


def age(cloud, image_id):
    """Makes an image ten minutes old; no request can."""
    with sqlite3.connect(cloud.glance.folder / "glance.db") as database:
        database.execute("UPDATE images SET updated_at = datetime(updated_at, '-10 minutes') WHERE id = ?", [image_id])


def test_glance_fetches_an_image(carry_out, run, cloud, web):
    task = {
        "name": "fetched", "url": f"{web}/one", "disk_format": "raw", "import_method": "web-download",
        "checksum": f"sha512:{sha512('one')}", "stores": ["store2"], "tags": ["t"],
    }  # fmt: skip
    result = carry_out(task, unknown=["size"])
    (there,) = everything(cloud)
    assert result["image"].items() >= there.items() and there["stores"] == "store2" and there["tags"] == ["t"]
    assert not run({**task, "checksum": None})["changed"]


@pytest.mark.parametrize(
    ("options", "error"),
    [({"url": "/nowhere"}, "import_failed"), ({"checksum": f"sha512:{'0' * 128}"}, "checksum_mismatch"),
     ({"checksum": f"sha256:{'0' * 64}"}, "unverifiable")],
)  # fmt: skip
def test_a_failed_import_leaves_nothing(run, cloud, web, options, error):
    task = {"name": "failed", "url": "/one", "disk_format": "raw", "import_method": "web-download", **options}
    result = run({**task, "url": web + task["url"]})
    assert result["error"] == error and everything(cloud) == [], result


def test_an_import_is_waited_for_no_longer_than_asked(run, cloud, web):
    task = {"name": "slow", "url": f"{web}/one", "disk_format": "raw", "import_method": "web-download", "timeout": 0}
    assert run(task)["error"] == "image_not_ready" and everything(cloud) == []


def test_an_image_is_copied_to_another_store(carry_out, run, cloud, made):
    task = {"id": made["id"], "import_method": "copy-image", "stores": ["store1", "store2"]}
    refused = run(task)
    assert refused["error"] == "access_denied", refused
    result = carry_out({**task, "cloud": "admin"})
    assert changes(result) == {"stores": ["store1", "store2"]}
    assert everything(cloud)[0]["stores"] == "store1,store2"
    failed = run({**task, "stores": ["nowhere"]}, cloud="admin")
    assert failed["error"] == "image_conflict" and everything(cloud)[0]["status"] == "active", failed


def test_what_has_no_meaning_is_refused(play):
    new = {"name": "x", "disk_format": "raw"}
    tasks = [
        {**new, "src": "/etc/hosts", "url": "http://b/"},
        {**new, "src": "/nowhere"},
        {**new, "src": "/dev"},
        {**new, "src": "/dev/null"},
        {**new, "url": "ftp://b/"},
        {**new, "url": "http://b/", "stores": ["store1", "store2"]},
        {**new, "url": "http://b/", "import_method": "web-download", "headers": {"a": "b"}},
        {"name": "x", "import_method": "web-download"},
        {"name": "x", "import_method": "copy-image"},
        {"name": "x", "checksum": "sha512:00"},
        {"name": "x", "state": "absent", "url": "http://b/"},
        {"filter": {"name": "x"}},
        {"state": "absent", "filter": {}},
        {"state": "absent", "filter": {"name": "x", "colour": "red"}},
        {"min_disk": 1},
    ]
    results = play.run(*({"cloud": "demo", **task} for task in tasks))
    assert [result.get("error") for result in results] == ["invalid_option"] * len(tasks), results


def test_many_hosts_make_one_image(play, cloud, files):
    results = play(yaml.safe_dump({"cloud": "demo", **make("once", files / "one")}), module="glance_image", hosts=5)
    assert len({result["image"]["id"] for result in results.values()}) == len(everything(cloud)) == 1


def test_no_secret_is_shown(run, play, web):
    address = f"{web.replace('//', '//user:s3cret-password@')}/two?key=s3cret-key"
    task = {
        "name": "secret", "url": address, "headers": {"X-Key": "s3cret-header"}, "disk_format": "raw",
        "checksum": f"sha512:{sha512('one')}",
    }  # fmt: skip
    gone = address.replace("two", "none")
    fetched = {"url": gone, "import_method": "web-download", "headers": None}
    refused = {"url": gone.replace("http://", "ftp://"), "import_method": "web-download", "headers": None}
    for method in ({}, {"url": gone}, fetched, refused):
        result = run({**task, **method})
        assert result["failed"] and "s3cret" not in json.dumps(result) + play.output, result
