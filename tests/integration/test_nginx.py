"""nginx in front, which sends the pictures: with the very configuration that is in `deploy/` to be copied."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator

import pytest

from launch.processes import HERE
from tests.integration.evidence import files_of
from tests.integration.faults import small_picture
from tests.integration.service import Deployed, ended, new_port

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")

pytestmark = [
    pytest.mark.processes,
    pytest.mark.one_machine("nginx reads the disk that web names"),
    pytest.mark.skipif(NGINX is None, reason="nginx is not installed: apt-get install nginx-light"),
]

ORIGIN = "https://www.example.com"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """A service whose first port is web's own, and whose second is nginx's."""
    with ended(tmp_path_factory.mktemp("nginx")) as services:
        service = services.deploy(
            ASGI_LOOK_ACCEL="x-accel-redirect:/protected/", ASGI_LOOK_CORS_ORIGINS=ORIGIN, ASGI_LOOK_MIN_THUMB_SIZE="64"
        )
        folder = service.data / "nginx"
        folder.mkdir()
        # Its workers are who we are, or they could not read what is ours.
        service.ports.append(new_port())
        told = (HERE / "deploy" / "nginx.conf").read_text()
        told = told.replace("STORAGE", str(service.data)).replace("listen 80;", f"listen 127.0.0.1:{service.ports[1]};")
        told = told.replace("127.0.0.1:8000", f"127.0.0.1:{service.ports[0]}")
        places = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        (folder / "nginx.conf").write_text(
            f"daemon off; user root; worker_processes 1; pid {folder}/pid; error_log stderr;\n"
            "events {}\n"
            "http {\n"
            "access_log off;\n" + "".join(f"{place}_temp_path {folder}/{place};\n" for place in places) + f"{told}}}\n"
        )
        service.start([str(NGINX), "-p", str(folder), "-c", str(folder / "nginx.conf")])
        service.until(lambda: service.is_ready(1), what="nginx")
        yield service


@pytest.fixture(scope="module")
def paths(service: Deployed) -> list[str]:
    """Where the pictures of one image are, uploaded through nginx."""
    record = service.upload(small_picture(), wait=20, web=1)
    assert record.status == 201
    return [record.json["image"], *record.json["thumbnails"]]


def test_nginx_sends_each_picture_with_the_headers_that_we_would_send(service: Deployed, paths: list[str]) -> None:
    for path in paths:
        ours = service.get(path, {"Origin": ORIGIN})
        theirs = [service.get(path, {"Origin": ORIGIN}, web=1) for _ in range(2)]

        for answer in theirs:
            assert answer.status == 200
            assert answer.headers["etag"] == f'"{hashlib.sha256(answer.body).hexdigest()}"'
            assert int(answer.headers["content-length"]) == len(answer.body)
            of_the_hop = {"date", "server", "content-length", "x-asgilook-cache", "x-accel-redirect", "connection"}
            assert {name: value for name, value in answer.headers.items() if name not in of_the_hop} == {
                name: value for name, value in ours.headers.items() if name not in of_the_hop
            }
        assert theirs[1].headers["x-asgilook-cache"] == "Hit"
        # Nobody who comes past nginx gets anything but where it is.
        assert (ours.status, ours.body) == (200, b"")


def test_a_picture_that_its_client_has_is_not_sent_again(service: Deployed, paths: list[str]) -> None:
    whole = service.get(paths[0], web=1)

    for condition in (
        {"If-None-Match": whole.headers["etag"]},
        {"If-None-Match": f'"other", {whole.headers["etag"]}'},
        {"If-Modified-Since": whole.headers["last-modified"]},
    ):
        answer = service.get(paths[0], condition, web=1)

        assert (answer.status, answer.body) == (304, b"")
        assert answer.headers["etag"] == whole.headers["etag"]
    assert service.get(paths[0], {"If-None-Match": '"other"'}, web=1).body == whole.body
    assert service.get(paths[0], {"If-Match": '"other"'}, web=1).status == 412


def test_ranges_and_head_are_nginxs(service: Deployed, paths: list[str]) -> None:
    whole = service.get(paths[0], web=1)

    part = service.get(paths[0], {"Range": "bytes=10-19"}, web=1)
    parts = service.get(paths[0], {"Range": "bytes=0-1,10-19"}, web=1)
    past = service.get(paths[0], {"Range": f"bytes={len(whole.body)}-"}, web=1)
    head = service.request("HEAD", paths[0], web=1)

    assert (part.status, part.body) == (206, whole.body[10:20])
    assert re.fullmatch(rf"bytes 10-19/{len(whole.body)}", part.headers["content-range"])
    assert (parts.status, parts.body) == (200, whole.body)
    assert past.status == 416
    assert (head.status, head.headers["content-length"], head.body) == (200, str(len(whole.body)), b"")


def test_what_is_not_there_is_our_problem_and_nobody_gets_in_by_the_side(service: Deployed, paths: list[str]) -> None:
    unknown = service.get("/images/01890a5d-ac96-774b-bcce-b302099a8057.jpeg", web=1)
    place = next(path for path in files_of(service) if path.startswith("renditions"))

    direct = service.get(f"/protected/{place}", web=1)

    assert (unknown.status, unknown.json["type"]) == (404, "urn:asgilook:problem:no-such-image")
    assert direct.status == 404


def test_of_a_picture_whose_file_has_just_gone_nobody_keeps_the_answer(service: Deployed) -> None:
    """Web has named a file that was superseded by the time that nginx opened it: pictures may be kept for a year."""
    record = service.upload(small_picture(), wait=20, web=1).json
    service.get(record["image"], web=1)
    shutil.rmtree(next((service.data / "renditions").rglob(record["id"])))

    gone = service.get(record["image"], web=1)

    assert (gone.status, "retry-after" in gone.headers) == (503, True)
    assert "no-store" in gone.headers["cache-control"]


def test_a_deleted_picture_is_gone_at_once(service: Deployed) -> None:
    record = service.upload(small_picture(), wait=20, web=1)
    path = record.json["image"]
    assert service.get(path, web=1).status == 200

    assert service.request("DELETE", f"/images/{record.json['id']}", web=1).status == 204

    assert service.get(path, web=1).status == 404
