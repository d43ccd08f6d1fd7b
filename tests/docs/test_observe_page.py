"""The page about observation names what there is: every event, every field, every metric."""

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from blindai.server.events import EVENTS
from blindai.testing.server import start_server
from tests.docs.pages import DOCS, names, rows, section
from tests.inference.models import identity
from tests.server.talk import infer_body, public_request, request

PAGE = DOCS / "how-to" / "observe.md"
# Only evidence of real hardware rests on something that ends.
NOT_SIMULATED = {"blindai_evidence_not_after_timestamp_seconds"}


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    """Return what a server tells that has served something and writes an audit log."""
    folder = tmp_path_factory.mktemp("observe")
    config = {"audit_log": folder / "audit.jsonl", "max_batch": 4}
    with start_server(models={"m": identity()}, config=config) as server:
        assert request(server, "POST", "/v2/models/m/infer", infer_body([1.0])).status == 200
        text = public_request(server, "GET", "/metrics").body.decode()
    return {
        family.name + ("_total" if family.type == "counter" else ""): family
        for family in text_string_to_metric_families(text)
    }


def test_every_event_with_its_fields():
    """The table of events is the list in the code."""
    said = {}
    for events, fields, _ in rows(section(PAGE, "## Logs")):
        for event in names(events):
            said[event] = set(names(fields))
    assert said == EVENTS


def test_every_metric(families):
    """The tables of metrics are what a server tells: names, types, labels and meanings."""
    table = {names(row[0])[0]: row[1:] for row in rows(section(PAGE, "## Metrics"))}
    assert set(table) - NOT_SIMULATED == set(families)
    for name, family in families.items():
        kind, labels, meaning = table[name]
        told = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert (name, kind) == (name, family.type)
        assert (name, set(names(labels))) == (name, told)
        assert meaning == family.documentation


def test_events_of_the_audit_log():
    """The table of audited events is the format's."""
    source = (DOCS.parent / "src/blindai/channel/audit.py").read_text()
    known = re.search(r"Event = Literal\[(.*)\]", source)[1].replace('"', "").split(", ")
    table = section(PAGE, "## Audit log")
    assert {event for row in rows(table) for event in names(row[0])} == set(known)
