# SPDX-License-Identifier: GPL-3.0-or-later
"""Both ends of the supported range: the newest ansible-core on the newest Python, and hosts with Python 3.9.

The rest of the tests runs with the oldest ansible-core on the oldest Python for controllers.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Playbook

ENDS = {
    "newest-controller": "IMAGEFERRY_NEWEST_VENV",
    "oldest-host": "IMAGEFERRY_HOST39_VENV",
}


@pytest.fixture(params=ENDS)
def end(request, tmp_path, cloud, images):
    """A playbook whose controller, or host, is at one end of the range."""
    variable = ENDS[request.param]
    venv = Path(os.environ.get(variable) or "/nonexistent")
    if not (venv / "bin" / "python").exists():
        pytest.skip(f"{variable} names no virtual environment: this machine has no Python for it")
    if request.param == "oldest-host":
        return Playbook(tmp_path / "play", cloud, host_python=venv / "bin" / "python")
    return Playbook(tmp_path / "play", cloud, venv=venv, host_python=venv / "bin" / "python")


def test_the_main_job_works(end, images, tmp_path):
    found = end("cloud: demo\nimage: disk-raw\ninspect: always", module="glance_image_info")["glance_images"]
    assert [image["safety"]["verdict"] for image in found] == ["safe"]

    for name, source in images.items():
        task = f"cloud: demo\nimage: {name}\npath: {tmp_path}/{name}\nmode: '0640'"
        assert end(task, "--check", "--diff")["changed"]
        result = end(task, "--diff")
        assert result["changed"] and not {"warnings", "deprecations"} & set(result), result
        assert "WARNING" not in end.output
        assert subprocess.run(["cmp", source, tmp_path / name], check=False).returncode == 0
        assert not end(task)["changed"]

    refused = end(f"cloud: demo\nimage: a-lie\npath: {tmp_path}/a-lie")
    assert refused["error"] == "format_mismatch"


def test_this_is_the_oldest_controller():
    assert sys.version_info[:2] == (3, 11)
    version = subprocess.run(
        [Path(sys.prefix) / "bin" / "ansible", "--version"], capture_output=True, text=True, check=True
    ).stdout
    assert version.startswith("ansible [core 2.19.")
