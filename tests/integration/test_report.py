# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbook report against a real Glance, and its page in a real browser."""

from __future__ import annotations

import json
import subprocess

import pytest
import yaml
from ansible_collections.imageferry.glance.docs.take_screenshot import BROWSER_OPTIONS, example, write_page
from conftest import HOST_PYTHON, InProject, Playbook, upload
from selenium import webdriver
from selenium.webdriver.common.by import By

HOSTILE = "<script>document.title = 'run'</script><img src=x onerror=\"document.title = 'run'\">{{ 7 * 7 }}"
SCHEMES = ("light", "dark")
WIDTHS = (360, 900, 1280)

LEAST_CONTRAST = """
const luminance = (color) => {
  const [red, green, blue] = color.match(/[\\d.]+/g).map((part) => part / 255)
    .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
};
const behind = (element) => {
  for (; element; element = element.parentElement) {
    const style = getComputedStyle(element);
    if (style.backgroundImage !== "none") return style.backgroundImage.match(/rgb\\([^)]*\\)/g);
    if (style.backgroundColor !== "rgba(0, 0, 0, 0)") return [style.backgroundColor];
  }
};
let least = [21, "no text"];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim() || !element.checkVisibility() || element.tagName === "SCRIPT") continue;
  const text = luminance(getComputedStyle(element).color);
  for (const color of behind(element).map(luminance)) {
    const contrast = (Math.max(text, color) + 0.05) / (Math.min(text, color) + 0.05);
    if (contrast < least[0]) least = [contrast, walker.currentNode.data];
  }
}
return least;
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for option in (*BROWSER_OPTIONS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver")) as driver:
        yield driver


@pytest.fixture(scope="module")
def project(cloud, disk_files, tmp_path_factory):
    """A project with an image, and one whose name means harm."""
    project = InProject(cloud, "report", tmp_path_factory.mktemp("project") / "clouds.yaml")
    upload(project, "debian-12", disk_files["disk-qcow2"], "qcow2", "--tag", "golden")
    upload(project, HOSTILE, disk_files["disk-qcow2"], "raw", "--tag", "<b>bold</b>")
    return project


@pytest.fixture(scope="module")
def report(project, tmp_path_factory):
    """Runs the playbook for a host that has a disk of an image, and one that is away."""
    folder = tmp_path_factory.mktemp("report")
    run = Playbook(folder / "play", project, host_python=HOST_PYTHON)
    disk = {"cloud": "demo", "path": str(folder / "disk.qcow2")}
    assert run(yaml.safe_dump({**disk, "image": "debian-12"}))["changed"]
    backup = {**disk, "set": "nightly", "time": "2026-01-02T03:04:00Z"}
    assert run(yaml.safe_dump(backup), module="volume_backup")["changed"]
    inventory = folder / "inventory"
    inventory.write_text(
        f"host0 ansible_connection=local ansible_python_interpreter={HOST_PYTHON}\n"
        "away ansible_host=127.0.0.1 ansible_port=1\n"
    )
    command = [run.program, "imageferry.glance.report", "-i", inventory, "-e", json.dumps({"folders": [str(folder)]})]

    def report(*arguments, cloud="demo", status=0):
        written = subprocess.run(
            [*command, "-e", f"cloud={cloud}", *arguments],
            env=run.environment, cwd=folder, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert written.returncode == status, written.stdout + written.stderr
        return written.stdout

    report.folder = folder
    report.page = folder / "imageferry-report.html"
    return report


@pytest.fixture(scope="module")
def page(report):
    report()
    return report.page


@pytest.fixture(scope="module")
def example_page(tmp_path_factory):
    page = tmp_path_factory.mktemp("example") / "example.html"
    write_page(page, example())
    return page


def show(browser, page, width=1280, scheme="light"):
    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get_log("browser"), browser.get_log("performance")
    browser.get(page.as_uri())


def text(browser, selector):
    return browser.find_element(By.CSS_SELECTOR, selector).text


def test_a_page_is_written_where_something_has_changed(report):
    report("--check")
    assert not report.page.exists()
    assert "changed=1" in report()
    written = report.page.read_bytes()
    assert report.page.stat().st_mode & 0o777 == 0o644
    assert "changed=1" not in report() and report.page.read_bytes() == written
    other = report.folder / "other.html"
    assert "changed=1" in report("-e", f"dest={other}", "-e", "title=<Rotterdam>", "--limit", "host0")
    assert "<title>&lt;Rotterdam&gt;</title>" in other.read_text() and "host-away" not in other.read_text()


def test_a_page_shows_what_there_is(browser, page, report):
    show(browser, page)
    disk = text(browser, "#host-host0 tbody tr")
    assert str(report.folder / "disk.qcow2") in disk and "debian-12" in disk and "current" in disk
    assert "could not be reached" in text(browser, "#host-away")
    rows = browser.find_elements(By.CSS_SELECTOR, "#images tbody tr")
    images = {row.find_element(By.TAG_NAME, "b").text: row for row in rows}
    assert "safe" in images["debian-12"].text and "golden" in images["debian-12"].text
    assert "64.0 MiB" in images["debian-12"].text and "host0" in images["debian-12"].text
    assert "unsafe" in images[HOSTILE].text and "nobody" in images[HOSTILE].text
    assert len(images) == 2, "the backup's image is shown as a backup"
    care = text(browser, "#care")
    assert "No answer" in care and "Unsafe image" in care and "Old backup" in care
    assert "disk.qcow2" in text(browser, "#set-1 .line:not(.scale)") and "2026-" in text(browser, "#set-1 .end .mark")


def test_names_are_only_text(browser, page):
    show(browser, page)
    assert HOSTILE in text(browser, "#images") and "<b>bold</b>" in text(browser, "#images")
    assert not browser.find_elements(By.CSS_SELECTOR, "main script, main img") and browser.title != "run"


def test_what_cannot_be_asked_is_shown(report, browser):
    page = report.folder / "failed.html"
    report("-e", f"dest={page}", cloud="nowhere")
    show(browser, page)
    assert "The image service could not be asked: " in text(browser, "#images")
    assert "The backups could not be listed: " in text(browser, "#backups")
    assert "disk.qcow2" in text(browser, "#host-host0") and "Image gone" not in text(browser, "#care")


@pytest.mark.parametrize("shown", ["page", "example_page"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_page_is_readable_everywhere(browser, request, shown, width, scheme):
    page = request.getfixturevalue(shown)
    show(browser, page, width, scheme)
    browser.execute_script("document.querySelectorAll('details').forEach((element) => { element.open = true; })")
    inner, needed = browser.execute_script("return [innerWidth, document.documentElement.scrollWidth]")
    assert inner == width and needed <= width
    contrast, where = browser.execute_script(LEAST_CONTRAST)
    assert contrast >= 4.5, where
    assert browser.execute_script(
        "return [...document.querySelectorAll('a')].filter((link) => !document.getElementById(link.hash.slice(1)))"
    ) == []  # fmt: skip
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {entry["params"]["request"]["url"] for entry in messages if entry["method"] == "Network.requestWillBeSent"}
    assert {url for url in asked if not url.startswith("data:")} == {page.as_uri()}
    assert browser.get_log("browser") == []


def test_headings_stay_in_sight(browser, example_page):
    show(browser, example_page)
    browser.execute_script("scrollTo(0, document.querySelector('#images tr:nth-child(4)').offsetTop + 900)")
    top = "return document.querySelector(arguments[0]).getBoundingClientRect()"
    heading, parts = (browser.execute_script(top, selector) for selector in ("#images th", "nav"))
    assert parts["top"] == 0 and heading["top"] == pytest.approx(parts["bottom"], abs=1.5)


def test_tables_are_cards_on_a_phone(browser, example_page):
    show(browser, example_page, 360)
    assert not browser.find_element(By.CSS_SELECTOR, "#images thead").is_displayed()
    label = "return getComputedStyle(document.querySelector('#images td:nth-child(2)'), '::before').content"
    assert browser.execute_script(label) == '"Format"'


def test_rows_are_filtered(browser, example_page):
    assert "<label hidden>" in example_page.read_text(), "a field that does nothing without the script"
    show(browser, example_page)
    browser.find_element(By.ID, "filter").send_keys("debian-12 kvm-01")
    shown = [row.text for row in browser.find_elements(By.CSS_SELECTOR, "[data-row]") if row.is_displayed()]
    assert shown and all("debian-12" in row and "kvm-01" in row for row in shown)
    assert text(browser, "#found").startswith(f"{len(shown)} of ")
    assert not browser.find_element(By.ID, "set-1").is_displayed()


def test_all_is_printed(browser, example_page):
    show(browser, example_page)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert not browser.find_element(By.TAG_NAME, "nav").is_displayed()
    height = "return document.querySelector('details tbody tr').getBoundingClientRect().height"
    assert browser.execute_script(height) > 10
