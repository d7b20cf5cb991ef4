from __future__ import annotations

import uuid

import falcon.asgi
import falcon.testing
import pytest

from api import urls
from api.urls import ImageIdConverter, SizeConverter

ID = "01890a5d-ac96-774b-bcce-b302099a8057"


class Echo:
    """Answers with the name of its route and what the converters made of the path."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response, **params: object) -> None:
        resp.media = [self.name, params]


@pytest.fixture
def client() -> falcon.testing.TestClient:
    app = falcon.asgi.App()
    urls.register(app.router_options)
    app.add_route("/images/{image_id:image_id}", Echo("record"))
    app.add_route("/images/{image_id:image_id}.jpeg", Echo("picture"))
    app.add_route("/thumbnails/{image_id:image_id}/{size:size}.jpeg", Echo("thumbnail"))
    return falcon.testing.TestClient(app)


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        (f"/images/{ID}", ["record", {"image_id": ID}]),
        (f"/images/{ID}.jpeg", ["picture", {"image_id": ID}]),
        (f"/thumbnails/{ID}/640x1.jpeg", ["thumbnail", {"image_id": ID, "size": [640, 1]}]),
        (f"/thumbnails/{ID}/65500x65500.jpeg", ["thumbnail", {"image_id": ID, "size": [65500, 65500]}]),
    ],
)
def test_a_canonical_path_reaches_its_route(client: falcon.testing.TestClient, path: str, answer: list[object]) -> None:
    assert client.simulate_get(path).json == answer


@pytest.mark.parametrize(
    "path",
    [
        f"/images/{ID.upper()}",
        f"/images/{ID}.JPEG",
        f"/images/{ID}.png",
        f"/images/{ID}/",
        f"/images/{{{ID}}}",
        f"/images/{ID.replace('-', '')}",
        f"/thumbnails/{ID}/640x480",
        f"/thumbnails/{ID}/640x480.jpeg.jpeg",
        f"/thumbnails/{ID}/640X480.jpeg",
        f"/thumbnails/{ID.upper()}/640x480.jpeg",
    ],
)
def test_any_other_spelling_of_a_path_is_not_found(client: falcon.testing.TestClient, path: str) -> None:
    assert client.simulate_get(path).status_code == 404


@pytest.mark.parametrize("make", [uuid.uuid1, uuid.uuid4])
def test_an_id_of_any_uuid_version_stays_as_it_was(make: type[uuid.UUID]) -> None:
    image_id = str(make())

    assert ImageIdConverter().convert(image_id) == image_id


@pytest.mark.parametrize(
    "text",
    [
        "",
        f"{ID}\n",
        f" {ID}",
        f"urn:uuid:{ID}",
        ID[:-1],
        ID + "0",
        ID.replace("a", "g"),
        ID.replace("0", "\N{ARABIC-INDIC DIGIT ZERO}"),
        "01890a5dac-96-774b-bcce-b302099a8057",
    ],
)
def test_what_is_not_quite_an_id_is_none(text: str) -> None:
    assert ImageIdConverter().convert(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "640",
        "640x",
        "x480",
        "0x480",
        "640x0",
        "0640x480",
        "640x0480",
        "+640x480",
        "640x-480",
        "640x480\n",
        " 640x480",
        "6_40x480",
        "64.0x480",
        "640x480x1",
        "65501x1",
        "1x65501",
        "99999x1",
        "1x" + "9" * 100_000,
        "\N{ARABIC-INDIC DIGIT SIX}4x48",
        "64\N{MULTIPLICATION SIGN}48",
    ],
)
def test_what_is_not_quite_a_size_is_none(text: str) -> None:
    assert SizeConverter().convert(text) is None
