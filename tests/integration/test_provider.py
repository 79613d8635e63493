# SPDX-License-Identifier: GPL-3.0-or-later
"""glance_provider_info against a real Glance and Keystone."""

from __future__ import annotations

import socket
import time

import pytest
import yaml
from conftest import MIB, Playbook, running_cloud, upload


@pytest.fixture
def look(import_image):
    def look(task, **options):
        return import_image(task, module="glance_provider_info", **options)

    return look


def test_a_member_may_do_what_a_reader_may_not(look, cloud):
    member, reader = (look(f"cloud: {user}")["provider"] for user in ("demo", "reader"))
    assert member["permissions"] == {"list": True, "create": True, "download": True, "ranges": True}
    assert reader["permissions"] == {"list": True, "create": False, "download": False, "ranges": None}
    assert (member["user"]["name"], member["project"]["name"], reader["roles"]) == ("demo", "demo", ["reader"])
    assert member["url"].startswith(cloud.image_url) and member["api_version"].startswith("2.")
    assert [(store["id"], store["default"]) for store in member["stores"]] == [("store1", True), ("store2", False)]
    assert "web-download" in member["import_methods"] and "qcow2" in member["disk_formats"]


def test_nothing_is_created_by_looking(look, find_images):
    before = [image["id"] for image in find_images("cloud: demo\nstatus: []\ndisk_format: []")["glance_images"]]
    look("cloud: demo")
    assert [i["id"] for i in find_images("cloud: demo\nstatus: []\ndisk_format: []")["glance_images"]] == before


def described(cloud, **changes):
    """A cloud as a dictionary, as it stands in clouds.yaml, with something else in it."""
    entry = yaml.safe_load(cloud.clouds_yaml.read_text())["clouds"]["demo"]
    auth = {**entry.pop("auth"), **changes.pop("auth", {})}
    return "cloud: " + yaml.safe_dump({**entry, "auth": auth, **changes}, default_flow_style=True, width=10000)


def test_a_cloud_can_be_a_dictionary_or_auth(look, cloud):
    assert look(described(cloud))["provider"]["user"]["name"] == "demo"
    auth = yaml.safe_load(cloud.clouds_yaml.read_text())["clouds"]["demo"]["auth"]
    result = look(yaml.safe_dump({"auth": auth, "region_name": "RegionOne"}))
    assert result["provider"]["project"]["name"] == "demo"


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"auth": {"password": "wrong-one"}}, "auth_failed"),
        ({"region_name": "Nowhere"}, "no_image_service"),
        ({"auth": {"auth_url": "http://127.0.0.1:9/v3"}}, "connection_failed"),
        ({"auth": {"auth_url": "http://nowhere.invalid:5000/v3"}}, "connection_failed"),
        ({"image_endpoint_override": "http://127.0.0.1:9"}, "connection_failed"),
        ({"auth_type": "nonsense"}, "cloud_not_found"),
    ],
)
def test_what_does_not_work_has_a_name(look, cloud, changes, error):
    result = look(described(cloud, **changes))
    assert result["failed"] and result["error"] == error, result
    assert "wrong-one" not in look.__closure__[0].cell_contents.output


def test_a_cloud_that_nobody_described(look):
    result = look("cloud: nowhere")
    assert result["error"] == "cloud_not_found" and "nowhere" in result["msg"]


@pytest.mark.parametrize("service", ["keystone", "glance"])
def test_a_service_that_does_not_answer_is_given_up(look, cloud, service):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        changes = {"auth": {"auth_url": f"{url}/v3"}} if service == "keystone" else {"image_endpoint_override": url}
        started = time.monotonic()
        result = look(described(cloud, api_timeout=2, **changes))
        assert result["error"] == "connection_timeout" and time.monotonic() - started < 20


def test_an_option_that_does_not_exist_is_named(look):
    result = look("cloud: demo\nclowd: prod")
    assert result["error"] == "invalid_option" and "clowd" in result["msg"]


def test_an_option_beside_a_dictionary_has_no_effect_and_is_refused(look, cloud):
    result = look(f"{described(cloud)}interface: internal")
    assert result["error"] == "invalid_option" and "interface is given as well" in result["msg"]


def test_many_hosts_ask_once(look, cloud):
    before = len(cloud.glance_access_log.read_text().splitlines())
    assert len(look("cloud: demo", hosts=20)) == 20
    assert len(cloud.glance_access_log.read_text().splitlines()) - before <= 10


def test_a_quota_is_told_where_there_is_one(look, tmp_path):
    assert look("cloud: demo")["provider"]["quota"] == {}
    with running_cloud(tmp_path / "cloud", size_quota=3 * MIB) as cloud:
        (tmp_path / "disk").write_bytes(bytes(2 * MIB))
        upload(cloud, "disk", tmp_path / "disk", "raw")
        result = Playbook(tmp_path / "other", cloud)("cloud: demo", module="glance_provider_info")
    assert result["provider"]["quota"]["image_size_total"] == {"limit": 3, "usage": 2}


def test_a_certificate_has_to_be_trusted(tmp_path):
    with running_cloud(tmp_path / "cloud", tls=True) as cloud:
        look = Playbook(tmp_path / "play", cloud)
        result = look("cloud: demo", module="glance_provider_info")
        assert result["provider"]["url"].startswith("https://") and result["provider"]["validate_certs"]
        untrusted = look(described(cloud, cacert=None), module="glance_provider_info")
        assert untrusted["error"] == "tls_untrusted"
        careless = look(described(cloud, cacert=None, verify=False), module="glance_provider_info")
        assert careless["provider"]["validate_certs"] is False
