# SPDX-License-Identifier: GPL-3.0-or-later
"""host_prepare with the real dnf, on a machine that says it is of Red Hat's family. Its packages are stand-ins.

The packages have the names of the real ones and hold nothing, as no repository of that family can be reached here. What
apt installs is seen on a whole host, by the Molecule scenario host_prepare.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import HOST_PYTHON, ROOT

VARIABLES = yaml.safe_load((ROOT / "roles" / "host_prepare" / "vars" / "redhat.yml").read_text())
NAMES = sorted({name for names in VARIABLES["__host_prepare_packages"].values() for name in names})


SPEC = """Name: {name}
Version: 1
Release: 1
Summary: Stands in for the real one
License: none
BuildArch: noarch
%description
%files
"""

# Everything that dnf and rpm write to is a folder of the test, for this one process and its children.
AS_ROCKY = """
set -e
cd "$1" && shift
cp -a /etc etc
rm -f etc/debian_version
printf 'NAME="Rocky Linux"\\nID="rocky"\\nID_LIKE="rhel centos fedora"\\nVERSION_ID="9.4"\\n' >os-release
cp --remove-destination os-release etc/os-release
echo 'Rocky Linux release 9.4 (Blue Onyx)' | tee etc/rocky-release >etc/redhat-release
mkdir -p etc/yum.repos.d
printf '[local]\\nname=local\\nbaseurl=file://%s/rpmdir\\ngpgcheck=0\\n' "$PWD" >etc/yum.repos.d/local.repo
mount --bind etc /etc
for folder in lib/dnf cache/dnf log; do
    mkdir -p "var/$folder" "/var/$folder"
    mount --bind "var/$folder" "/var/$folder"
done
mkdir home
export HOME=$PWD/home # where Debian's rpm has its database
exec "$@"
"""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give dnf a system of its own")


@pytest.fixture
def rocky(tmp_path):
    """Runs a command where dnf is the package manager, and has the role's packages to install."""
    for name in NAMES:
        (tmp_path / f"{name}.spec").write_text(SPEC.format(name=name))
    specs = [tmp_path / f"{name}.spec" for name in NAMES]
    into = [f"--define=_{name} {tmp_path}/{name}" for name in ("topdir", "rpmdir", "dbpath")]
    subprocess.run(["rpmbuild", "-bb", "--quiet", *into, *specs], check=True)
    subprocess.run(["createrepo_c", "--quiet", tmp_path / "rpmdir"], check=True)

    def run(*command):
        return subprocess.run(
            ["unshare", "--mount", "bash", "-c", AS_ROCKY, "bash", tmp_path, *command],
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    return run


def test_hosts_of_red_hats_family_get_what_they_need(rocky, tmp_path):
    role = {"name": "imageferry.glance.host_prepare"}
    play = {"hosts": "localhost", "gather_facts": False, "vars": {"host_prepare_start_libvirt": False}}
    playbook = tmp_path / "playbook.yml"
    playbook.write_text(yaml.safe_dump([{**play, "tasks": [{"ansible.builtin.include_role": role}]}]))
    ansible = (Path(sys.prefix) / "bin" / "ansible-playbook", playbook, "-i", "localhost,", "-c", "local",
               "-e", f"ansible_python_interpreter={HOST_PYTHON}")  # fmt: skip
    thrice = 'predict=$1; shift; "$@" "$predict" && "$@" && "$@" && rpm --query --all'
    done = rocky("bash", "-c", thrice, "bash", "--check", *ansible)
    assert done.returncode == 0, done.stdout + done.stderr
    changes = [line.split("changed=")[1].split()[0] for line in done.stdout.splitlines() if "changed=" in line]
    assert changes == ["1", "1", "0"], done.stdout
    assert sorted(line for line in done.stdout.splitlines() if line.endswith("-1-1.noarch")) == [
        f"{name}-1-1.noarch" for name in NAMES
    ]
