"""Alerts and dashboard, loaded into a real Prometheus that scrapes a real `blindai serve`."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.inference.models import identity
from tests.ports import free_ports
from tests.server.talk import infer_body, request

FOLDER = Path(__file__).parents[2] / "deploy" / "observability"
ALERTS = FOLDER / "alerts.yaml"
DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [(panel["title"], each["expr"]) for panel in PANELS for each in panel["targets"]]
METRIC = re.compile(r"instance\w*:[\w:]+|\b(?:blindai|process)_[a-z0-9_]+|\bup\b")
# Only evidence of real hardware rests on something that ends.
NOT_SIMULATED = {"blindai_evidence_not_after_timestamp_seconds"}

pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="prometheus is not installed: apt-get install prometheus",
)


def wait_for(look, seconds=60):
    """Return what `look` does as soon as it is something."""
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.3)
    return found


@pytest.fixture(scope="module")
def blindai_server(tmp_path_factory):
    """A real server that has served something, with an audit log, a batch and an error."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "models").mkdir()
    (folder / "models" / "m.onnx").write_bytes(identity())
    command = [Path(sys.executable).with_name("blindai"), "serve", "--platform", "simulation"]
    command += ["--port", "0", "--public-port", "0", "--grpc-port", "0", "--max-batch", "4"]
    command += ["--no-fetch-endorsements", "--models", folder / "models", "--json"]
    command += ["--audit-log", folder / "audit.jsonl", "--token-file", folder / "token"]
    with subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, text=True) as process:
        try:
            ready = json.loads(process.stdout.readline())
            yield SimpleNamespace(address=ready["attested"], public_address=ready["public"])
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


@pytest.fixture(scope="module")
def ask(blindai_server, tmp_path_factory):
    """Return what asks a Prometheus that has scraped the server a few times, under load."""
    folder = tmp_path_factory.mktemp("prometheus")
    configuration = (FOLDER / "prometheus.yaml").read_text()
    for shipped, here in (
        ("15s", "1s"),
        ("localhost:50052", blindai_server.public_address),
        ("[alerts.yaml]", f"[{ALERTS}]"),
    ):
        assert shipped in configuration
        configuration = configuration.replace(shipped, here)
    (folder / "prometheus.yaml").write_text(configuration)
    (port,) = free_ports(1)
    command = ["prometheus", f"--config.file={folder / 'prometheus.yaml'}"]
    command += [f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}"]

    def ask(path, **parameters):
        url = f"http://127.0.0.1:{port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            return json.load(error)
        except OSError:
            return {}

    def scraped_often():
        body = infer_body([1.0, 2.0])
        assert request(blindai_server, "POST", "/v2/models/m/infer", body).status == 200
        assert request(blindai_server, "GET", "/v2/models/none").status == 404
        found = ask("query", query="count_over_time(blindai_ready[1m])").get("data", {})
        return found.get("result") and float(found["result"][0]["value"][1]) >= 6

    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(command, stderr=log) as process,
    ):
        try:
            wait_for(scraped_often)
            yield ask
        finally:
            process.terminate()
            process.wait(30)


def expressions():
    """Return every expression of the alerts' file."""
    lines = ALERTS.read_text()
    return re.findall(r"expr: (?:\|\n((?:          .*\n)+)|(.*)\n)", lines)


def filled(expression):
    """Return a query of the dashboard as Grafana sends it."""
    return expression.replace("$instance", ".*").replace("$__rate_interval", "10s")


def test_promtool_accepts_the_rules():
    """Rules have no errors, and each alert fires at what it is for and at nothing else."""
    for command in (["check", "rules", ALERTS], ["test", "rules", FOLDER / "alerts_test.yaml"]):
        done = subprocess.run(
            ["promtool", *map(str, command)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested():
    """No alert is without a case in which it fires, and one in which it does not."""
    alerts = re.findall(r"- alert: (\w+)", ALERTS.read_text())
    tested = re.findall(
        r"alertname: (\w+)\n +exp_alerts", (FOLDER / "alerts_test.yaml").read_text()
    )
    assert sorted(tested) == sorted(alerts)


def test_prometheus_evaluates_every_rule(ask):
    """Each rule is loaded and evaluated without an error; that the server is simulated is told."""

    def evaluated():
        groups = ask("rules")["data"]["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        return rules if all(rule["health"] != "unknown" for rule in rules) else None

    rules = wait_for(evaluated)
    assert [rule["name"] for rule in rules if rule["health"] != "ok"] == []
    assert len(rules) == len(expressions())
    firing = {rule["name"] for rule in rules if rule.get("state") == "firing"}
    assert firing == {"BlindAISimulated"}


@pytest.mark.parametrize(("title", "query"), QUERIES, ids=[title for title, _ in QUERIES])
def test_dashboard_queries(ask, title, query):
    """Each query of the dashboard is one, and has something to show."""
    answer = ask("query", query=filled(query))
    assert answer["status"] == "success", answer
    assert answer["data"]["result"], "nothing to show"


def test_every_metric_that_is_used_exists(ask):
    """What alerts and dashboard look at is what the server tells, name by name."""
    used = set()
    for expression in [*map("".join, expressions()), *(query for _, query in QUERIES)]:
        used |= set(METRIC.findall(expression))
    known = set(ask("label/__name__/values")["data"])
    assert len(used) > 25
    assert used - known == NOT_SIMULATED


def test_the_dashboard_hangs_together():
    """Panels have numbers of their own, do not overlap, and ask the source that is chosen."""
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(numbers)) == len(numbers)
    taken = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    sources = {json.dumps(panel["datasource"]) for panel in PANELS}
    assert sources == {json.dumps({"type": "prometheus", "uid": "${datasource}"})}
    assert {each["name"] for each in DASHBOARD["templating"]["list"]} == {"datasource", "instance"}
