"""What a running service serves is what rendering made: the same kinds, uploaded and fetched."""

from __future__ import annotations

import pytest

from tests.fidelity.difference import difference
from tests.fidelity.kinds import named
from tests.fidelity.rendered import decoded, reduced, renditions
from tests.fidelity.test_fidelity import is_right
from tests.integration.service import Deployed

pytestmark = pytest.mark.processes


@pytest.mark.parametrize(
    "name",
    [
        "jpeg, orientation 7",
        "jpeg, Display P3",
        "jpeg, YCCK with a profile",
        "png, 16 bits with alpha",
        "png, cICP of BT.2020 and PQ",
        "tiff, 16 bits, band by band, MM, none",
        "gif, a first frame that does not fill the canvas",
        "avif, nclx of Display P3",
        "odd sides",
    ],
)
def test_an_uploaded_file_is_served_looking_as_its_maker_meant_it(service: Deployed, name: str) -> None:
    sample = named(name).make()

    answer = service.upload(sample.file, wait=20)

    assert answer.status == 201, answer.body
    height, width = sample.reference.shape[:2]
    assert answer.json["size"] == [width, height]
    full = decoded(service.get(answer.json["image"]).body)
    thumbnail = decoded(service.get(answer.json["thumbnails"][0]).body)
    assert is_right(difference(full, sample.reference))
    assert is_right(difference(thumbnail, reduced(sample.reference, (width // 2, height // 2))))
    assert [service.get(answer.json["image"]).body] == list(renditions(sample.file).values())[:1]
