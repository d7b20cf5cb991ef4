"""The whole corpus comes to a running service, among good photographs: none of it harms anything but itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import pytest

from api.problems import TITLES
from shared.settings import Settings
from tests.corpus.collection import corpus
from tests.corpus.honest import photographs
from tests.corpus.scan import odd_in, traces
from tests.corpus.specimens import Specimen
from tests.corpus.storm import TIMES_AMONG, Storm, rage
from tests.integration.service import Deployed, ended

pytestmark = pytest.mark.processes

#: What web and worker may take: they pass files on in pieces, and keep a few copies of responses.
MOST_BYTES = 256 * 1024 * 1024


@pytest.fixture(scope="module")
def specimens() -> list[Specimen]:
    return corpus()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """One web process, and a worker that renders two pictures at once."""
    with ended(tmp_path_factory.mktemp("corpus")) as services:
        yield services.deploy(ASGI_LOOK_RENDER_SLOTS="2")


@pytest.fixture(scope="module")
def storm(service: Deployed, specimens: list[Specimen]) -> Iterator[Storm]:
    """The storm, over; the table is printed when all have looked at it."""
    storm = rage(service, specimens, photographs())
    yield storm
    print("", *_table(storm, specimens), sep="\n")


@pytest.fixture(scope="module")
def renditions(service: Deployed, storm: Storm) -> dict[str, list[bytes]]:
    """Every rendition there is, as a client gets it, by its specimen's name."""
    found: dict[str, list[bytes]] = {}
    for fate in (*storm.fates, *storm.good):
        if fate.outcome == "ready":
            record = service.get(f"/images/{fate.image_id}").json
            answers = [service.get(path) for path in (record["image"], *record["thumbnails"])]
            storm.answers.update(answer.status for answer in answers)
            storm.fetched += len(answers)
            found.setdefault(fate.name, []).extend(answer.body for answer in answers)
    return found


def test_no_process_of_the_service_is_lost(storm: Storm) -> None:
    assert storm.gone == []


def test_no_answer_is_a_fault_of_ours(storm: Storm, renditions: dict[str, list[bytes]]) -> None:
    assert {status: count for status, count in storm.answers.items() if status >= 500} == {}


def test_no_attempt_is_lost(storm: Storm) -> None:
    """A file that takes a child with it, other than by its limits, would be tried again and again."""
    assert storm.lost == {}


def test_nobody_who_reads_the_log_is_alarmed(storm: Storm) -> None:
    assert storm.errors == []


def test_every_file_comes_to_an_end_that_it_may_have(storm: Storm, specimens: list[Specimen]) -> None:
    outcomes = {specimen.name: specimen.outcomes for specimen in specimens}

    surprises = [fate for fate in storm.fates if fate.outcome not in outcomes[fate.name]]

    assert surprises == []
    assert len(storm.fates) == len(specimens)


def test_every_bad_file_is_told_why(storm: Storm) -> None:
    told = [fate for fate in storm.fates if fate.outcome != "ready"]

    assert [fate for fate in told if fate.outcome not in TITLES] == []
    assert [fate for fate in told if not fate.detail.strip() or not fate.detail.isprintable()] == []


def test_no_good_photograph_fails(storm: Storm) -> None:
    assert Counter(fate.outcome for fate in storm.good) == {"ready": len(photographs()) * TIMES_AMONG}


def test_a_good_photograph_takes_no_second_longer_than_alone(storm: Storm) -> None:
    """From claim to ready, as the worker's own log has it.

    What other programs took of the processors meanwhile is not held against the service.
    """
    late = [rendering for rendering in storm.renderings if rendering.late - rendering.foreign > 1.0]

    assert late == []
    assert len(storm.renderings) == len(photographs()) * TIMES_AMONG


def test_the_memory_of_every_process_is_bounded(storm: Storm) -> None:
    limits = {"web": MOST_BYTES, "worker": MOST_BYTES, "child": Settings().render_memory_bytes}

    beyond = {kind: peaks for kind, peaks in storm.peaks.items() if not peaks or max(peaks.values()) > limits[kind]}

    assert beyond == {}


def test_nothing_that_was_planted_comes_through(specimens: list[Specimen], renditions: dict[str, list[bytes]]) -> None:
    planted = [specimen.name for specimen in specimens if specimen.planted]

    found = {name: ways for name in planted for rendition in renditions[name] if (ways := traces(rendition))}

    assert len(planted) > 200
    assert found == {}


def test_every_rendition_is_pixels_and_what_they_need(renditions: dict[str, list[bytes]]) -> None:
    odd = {name: why for name, those in renditions.items() for jpeg in those if (why := odd_in(jpeg))}

    assert odd == {}


def _table(storm: Storm, specimens: Sequence[Specimen]) -> Iterator[str]:
    yield f"{len(specimens)} specimens and {len(storm.good)} good photographs in {storm.seconds:.0f} s"
    yield ""
    kinds: dict[str, Counter[str]] = {}
    for fate in storm.fates:
        kinds.setdefault(fate.name.partition("/")[0], Counter())[fate.outcome] += 1
    columns = sorted({outcome for counts in kinds.values() for outcome in counts})
    yield "| kind | files | " + " | ".join(columns) + " |"
    yield "|---|" + "---|" * (len(columns) + 1)
    for kind, counts in sorted(kinds.items()):
        yield f"| {kind} | {counts.total()} | " + " | ".join(str(counts[column] or "") for column in columns) + " |"
    yield ""
    yield f"processes of the service lost: {len(storm.gone)}"
    yield f"answers: {dict(sorted(storm.answers.items()))}"
    yield f"good photographs failed: {sum(fate.outcome != 'ready' for fate in storm.good)} of {len(storm.good)}"
    if storm.renderings:
        latest = max(storm.renderings, key=lambda rendering: rendering.late)
        yield (
            f"from claim to ready, the latest: {latest.name} took {latest.took:.2f} s, {latest.alone:.2f} s alone "
            f"(other programs took {latest.foreign:.2f} s of the processors meanwhile)"
        )
        lates = sorted(rendering.late for rendering in storm.renderings)
        yield f"later than alone: median {lates[len(lates) // 2]:.2f} s, worst {lates[-1]:.2f} s"
    for kind, peaks in storm.peaks.items():
        yield f"most memory of a {kind}: {max(peaks.values()) / 1e6:.0f} MB ({len(peaks)} processes)"
    yield f"children replaced: {storm.replaced.total()}, by exit code {dict(storm.replaced)}"
    yield f"attempts lost: {len(storm.lost)}, lines of errors in the log: {len(storm.errors)}"
    yield f"renditions fetched and looked at: {storm.fetched}"
