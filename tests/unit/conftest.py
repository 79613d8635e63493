# SPDX-License-Identifier: GPL-3.0-or-later
"""A thick logical volume on a loop device, as the machine of the tests may have no device mapper."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from ansible_collections.imageferry.glance.plugins.module_utils._volume import lvm
from ansible_collections.imageferry.glance.plugins.module_utils._volume.ledger import Ledger

MIB = 1 << 20
PROGRAM = """#!/bin/sh
cd FOLDER
gained=nodes/vg0/imageferry.gained.a-b
echo "${0##*/} $*" >> asked
used() { head -c $1 /dev/zero | tr '\\0' '\\377'; }
resize() {
  more=$((${1%b} - $(stat -c %s backing)))
  [ $more -gt 0 ] && used $more >> backing || truncate -s ${1%b} backing
  losetup -c DEVICE
}
activate() { [ $1 = n ] && rm -f node || ln -sf DEVICE node; }
group() { echo '"vg_extent_size": "4194304", "vg_free": "'$((1073741824 - $(cat gained 2>&- | wc -c)))'"'; }
row() {
  cat <<END
{"lv_name": "$1", "lv_uuid": "$2", "lv_size": "$(blockdev --getsize64 $3)", "lv_tags": "$4", "lv_layout": "linear",
 "lv_role": "public", "lv_active": "$5", "lv_permissions": "writeable", "lv_health_status": "", "pool_lv": "",
 "origin": "", "data_percent": "", $(group)}
END
}
report() { echo '{"report": [{"'$1'": ['$2']}]}'; }
case "${0##*/} $*" in
  lvs*origin=*) report lv ''; exit ;;
  lvs*seg_pe_ranges*) report lv '{"seg_pe_ranges": "/dev/pv:7-9"}'; exit ;;
  lvs*) [ ! -e tags ] || rows=$(row db a-b DEVICE "$(paste -sd, tags)" "$([ -e node ] && echo active)")
    [ ! -e gained ] || rows="$rows${rows:+,}$(row ${gained##*/} c-d $gained imageferry.unfinished active)"
    report lv "$rows"; exit ;;
  vgs*) report vg "{$(group)}"; exit ;;
  lvcreate*gained*) used ${7%b} > gained; ln -s $(losetup -f --show gained) $gained; exit ;;
  lvremove*gained*) losetup -d $(readlink $gained); rm $gained; mv gained freed; exit ;;
  lvextend*/dev/pv:7-9) cat freed >> backing; losetup -c DEVICE; exit ;;
  lvremove*) rm -f tags node; exit ;;
  lvcreate*) touch tags; activate y ;;
esac
while [ $# -gt 1 ]; do
  case $1 in
    --size) resize $2 ;;
    --activate) activate $2 ;;
    --addtag) echo "$2" >> tags ;;
    --deltag) grep -vxF "$2" tags > kept; mv kept tags ;;
  esac
  shift
done
"""


class LogicalVolumes:
    """Objects of one logical volume, vg0/db, that is not there yet.

    :param device: the loop device that it is.
    """

    def __init__(self, folder: Path, device: str) -> None:
        self.device = device
        self._folder = folder
        self.ledger = Ledger(str(folder / "ledger"))

    def __call__(self):
        volume = lvm.LvmVolume("vg0", "db", ledger=self.ledger)
        volume.path = str(self._folder / "node")
        return volume

    def run(self, program, *arguments):
        """As somebody else would."""
        subprocess.run([self._folder / program, *arguments, "vg0/db"], check=True)

    def asked(self):
        """What LVM was asked for since this was called last, apart from reports."""
        said = (self._folder / "asked").read_text().splitlines()
        (self._folder / "asked").write_text("")
        return [line for line in said if not line.startswith(("lvs", "vgs"))]

    def tags(self):
        return (self._folder / "tags").read_text().split()

    def is_active(self):
        return (self._folder / "node").exists()

    def content(self):
        with open(self.device, "rb", buffering=0) as file:
            return file.read()


@pytest.fixture
def logical(tmp_path, monkeypatch):
    """The logical volume; what earlier ones have left on its 32 MiB, and on all that it gains, is 0xff."""
    if os.geteuid() != 0:
        pytest.skip("loop devices need root")
    folder = tmp_path / "lvm"
    (folder / "nodes/vg0").mkdir(parents=True)
    (folder / "backing").write_bytes(b"\xff" * (32 * MIB))
    made = subprocess.run(["losetup", "-f", "--show", folder / "backing"], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip("there are no loop devices here")
    device = made.stdout.strip()
    for name in ("lvs", "vgs", "lvcreate", "lvextend", "lvchange", "lvremove"):
        (folder / name).write_text(PROGRAM.replace("FOLDER", str(folder)).replace("DEVICE", device))
        (folder / name).chmod(0o755)
    monkeypatch.setattr(lvm, "_PROGRAMS", f"{folder}:{lvm._PROGRAMS}")
    monkeypatch.setattr(lvm, "_NODES", str(folder / "nodes"))
    yield LogicalVolumes(folder, device)
    for node in (device, *map(os.readlink, folder.glob("nodes/vg0/*"))):
        subprocess.run(["losetup", "-d", node], check=True)
