"""The page that a person sees who opens the unattested port in a browser.

Always true: it says that it proves nothing; simulation is said before all else; every value is
escaped; nothing is loaded from anywhere, and the content security policy names the one style and
the one script by their hashes. Without the script all can be read; it only copies. Names of models
that are not public are not on it.

Specification: Content Security Policy Level 3; WCAG 2.2, level AA.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from blindai.server.charts import bars
from blindai.server.load_history import INTERVAL, LENGTH
from blindai.server.markup import Html, fill, join, load_template

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from blindai.server.load_history import Load
    from blindai.server.self_check import SelfCheck

_PAGE: Final = load_template("page.html")
_STYLE: Final = load_template("style.css")
_SCRIPT: Final = load_template("copy.js")
# What a shell takes as it stands: the rest of a Host header is for nobody's command line.
_HOST: Final = re.compile(
    r"(\[[0-9a-fA-F:.]{2,45}\]|[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252}))(:\d{1,5})?"
)
_MILLISECONDS: Final = 1000.0
_MINUTE: Final = 60
_HOUR: Final = 3600

_ALARM: Final = """<section class="alarm" aria-labelledby="alarm"><h2 id="alarm">SIMULATED</h2>
<p>No hardware protects what is sent to this server: whoever runs the machine can read it. For tests
only. Clients refuse it unless they ask for simulation by name.</p></section>"""
_SIMULATION_HINT: Final = "--simulation says that you know that nothing protects the data."
_POLICY_HINT: Final = (
    "Take the program and the policy from whoever answers for this server's code; a policy that "
    "this machine hands to you accepts this machine."
)
_PORT_HINT: Final = (
    "{port} is the attested port as the server knows it: behind a proxy or a container's port "
    "mapping it may have another number."
)
_NEVER_HINT: Final = (
    "Never send data to this port, and do not open the attested one in a browser: browsers do not "
    "verify evidence."
)
_FACT: Final = "<dt>{name}</dt><dd>{value}</dd>"
_VALUE: Final = """<dt>{name}</dt><dd class="copied"><code id="{id}">{value}</code>\
<button type="button" hidden data-copies="{id}" aria-label="Copy {name}">Copy</button></dd>"""
_PROBLEM: Final = """<p>This server cannot verify its own evidence now, so nothing can be shown \
here: {problem}</p><p class="soft">A client fetches what is missing and verifies by itself.</p>"""
_CHARTS: Final = """<div class="charts">{charts}</div>\
<p class="soft">The operator's models together.</p>"""
_AXIS: Final = '<div class="axis"><span>{minutes} minutes ago</span><span>now</span></div>'


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What is on the page.

    Attributes:
        state: Of the server: "starting", "ready", "stopping".
        platform: Of its evidence.
        simulated: Whether no hardware protects it.
        version: Of BlindAI.
        now: The server's clock.
        keys_until: When the present keys expire.
        evidence: What its evidence says.
        evidence_age: Seconds since that was made.
        host: The Host header that the request came with; "" for none.
        port: The attested port.
        grpc_port: The attested port for gRPC; `None`: none.
        confinement: What the process has given up, by name.
        public_models: Names of models that anybody may know.
        other_models: How many more there are.
        load: The last intervals, oldest first.
        telemetry: Whether the server reports about itself, in words.
    """

    state: str
    platform: str
    simulated: bool
    version: str
    now: datetime
    keys_until: datetime
    evidence: SelfCheck
    evidence_age: float | None
    host: str
    port: int
    grpc_port: int | None
    confinement: Sequence[str]
    public_models: Sequence[str]
    other_models: int
    load: Sequence[Load]
    telemetry: str


def render(status: Status) -> bytes:
    """Return the page, in UTF-8."""
    title = f"BlindAI, {'SIMULATED, ' if status.simulated else ''}{status.state}"
    page = fill(
        _PAGE,
        title=title,
        style=_STYLE,
        script=_SCRIPT,
        state=status.state,
        alarm=Html(_ALARM) if status.simulated else Html(""),
        command=_words(verify_command(status)),
        hints=_hints(status),
        facts=_facts(status),
        measurements=_measurements(status),
        models=_models(status),
        load=_load(status.load),
        now=_moment(status.now),
    )
    return page.encode()


def content_security_policy() -> bytes:
    """Return the header's value: this style, this script, an empty icon, and nothing else."""
    return (
        f"default-src 'none'; style-src {_hash(_STYLE)}; script-src {_hash(_SCRIPT)}; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ).encode()


def verify_command(status: Status) -> str:
    """Return the command that verifies this server from where the page was opened.

    The host is what the browser asked for; one that a shell could take for something else is
    left for the reader to fill in.
    """
    found = _HOST.fullmatch(status.host)
    host = found[1] if found else "HOST"
    what = "--simulation" if status.simulated else "--policy policy.toml"
    return f"blindai verify {host}:{status.port} {what}"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _words(command: str) -> Html:
    return join((fill("<span>{word}</span>", word=word) for word in command.split()), " ")


def _hints(status: Status) -> Html:
    first = _SIMULATION_HINT if status.simulated else _POLICY_HINT
    hints = (first, _PORT_HINT.format(port=status.port), _NEVER_HINT)
    return join(fill("<li>{hint}</li>", hint=hint) for hint in hints)


def _facts(status: Status) -> Html:
    evidence = status.evidence
    rows = {
        "Platform": f"{status.platform} (SIMULATED)" if status.simulated else status.platform,
        "BlindAI": status.version,
        "Evidence made": "not yet" if status.evidence_age is None else _ago(status.evidence_age),
        "Keys hold until": _moment(status.keys_until),
        "Attested ports": f"{status.port} (HTTPS)"
        + ("" if status.grpc_port is None else f", {status.grpc_port} (gRPC)"),
        "Process gave up": ", ".join(sorted(status.confinement)) or "nothing: it is not confined",
        "Telemetry": status.telemetry,
    }
    if evidence.claims is not None:
        versions = [f"{name} {number}" for name, number in sorted(evidence.claims.versions.items())]
        rows["Versions"] = ", ".join(versions) or "none"
        rows["Weaknesses"] = ", ".join(sorted(evidence.claims.weaknesses)) or "none"
    return join(fill(_FACT, name=name, value=value) for name, value in rows.items())


def _measurements(status: Status) -> Html:
    claims = status.evidence.claims
    if claims is None:
        return fill(_PROBLEM, problem=status.evidence.problem)
    if not claims.measurements:
        return Html("<p>This platform measures nothing.</p>")
    values = join(
        fill(_VALUE, id=f"measurement-{position}", name=name, value=value.hex() or "(empty)")
        for position, (name, value) in enumerate(sorted(claims.measurements.items()))
    )
    return fill('<dl class="values">{values}</dl>', values=values)


def _models(status: Status) -> Html:
    others = status.other_models
    if not status.public_models:
        text = f"{others} loaded. Their names are not public." if others else "None is loaded."
        return fill("<p>{text}</p>", text=text)
    names = join(fill("<li><code>{name}</code></li>", name=name) for name in status.public_models)
    more = fill("<p>{count} more, not public.</p>", count=others) if others else Html("")
    return fill("<ul>{names}</ul>{more}", names=names, more=more)


def _load(load: Sequence[Load]) -> Html:
    if not load:
        text = f"Nothing yet: the first {INTERVAL:g} seconds are not over."
        return fill("<p>{text}</p>", text=text)
    means = [None if each.mean is None else each.mean * _MILLISECONDS for each in load]
    charts = (
        bars("requests per second", [each.succeeded / each.seconds for each in load], ""),
        bars("mean time of a request", means, " ms"),
        bars("running or waiting", [float(each.running) for each in load], ""),
        bars("errors per second", [each.failed / each.seconds for each in load], ""),
    )
    axis = fill(_AXIS, minutes=round(INTERVAL * LENGTH / _MINUTE))
    shown = join(fill("<div>{chart}{axis}</div>", chart=chart, axis=axis) for chart in charts)
    return fill(_CHARTS, charts=shown)


def _moment(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _ago(seconds: float) -> str:
    if seconds < _MINUTE:
        return f"{seconds:.0f} seconds ago"
    if seconds < _HOUR:
        return f"{seconds / _MINUTE:.0f} minutes ago"
    return f"{seconds / _HOUR:.1f} hours ago"
