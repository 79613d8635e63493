# SPDX-License-Identifier: GPL-3.0-or-later
"""Answers of Glance's that the real one of the tests gives only by chance."""

from __future__ import annotations

import http.server
import json
import threading

import pytest
from ansible_collections.imageferry.glance.plugins.module_utils._errors import CloudError
from ansible_collections.imageferry.glance.plugins.plugin_utils import _cloud


@pytest.fixture
def glance():
    """A server that answers to each PATCH with the next of its statuses, and says else that it is a Glance."""

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_PATCH(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.answer(self.server.statuses.pop(0), {})

        def do_GET(self):
            links = [{"rel": "self", "href": f"http://{self.headers['Host']}/v2/"}]
            self.answer(300, {"versions": [{"id": "v2.0", "status": "CURRENT", "links": links}]})

        def answer(self, status, value):
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever).start()
        yield server
        server.shutdown()


def test_a_change_is_sent_again_where_glance_fails_for_a_moment(glance, monkeypatch):
    monkeypatch.setattr(_cloud, "_RETRIES", 2)
    entry = {"auth_type": "none", "image_endpoint_override": f"http://127.0.0.1:{glance.server_port}/v2"}
    cloud = _cloud.Cloud({"cloud": entry, "interface": "public"})
    glance.statuses = [500, 503, 200]
    assert cloud.patch("/images/one", []).json() == {}
    glance.statuses = [500, 500, 500, 200]
    with pytest.raises(CloudError, match="500"):
        cloud.patch("/images/one", [])
    assert glance.statuses == [200]
