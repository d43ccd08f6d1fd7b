"""The whole HTTP surface, as the OpenAPI document has it, with schemathesis over attested TLS.

Every operation gets requests that fit its description and requests that do not. No answer may be
a 500, have a status or a type that the document does not name, or end the connection.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections import Counter
from contextlib import closing
from pathlib import Path
from unittest import SkipTest

import hypothesis
import requests
import schemathesis
from hypothesis import HealthCheck, Phase
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS
from schemathesis.core.failures import FailureGroup

from tests.inference.models import identity
from tests.served import serving
from tests.server.grpc.talk import root_of
from tests.server.talk import authorized, request

NOT_SERVED = 501
# What is judged: the server's errors, and the document against the answers.
JUDGED = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
)


@dataclasses.dataclass
class Surface:
    """What was asked of one port.

    Attributes:
        operations: Of the document.
        cases: Requests.
        statuses: That came back, counted.
        failures: What must not be, each once.
    """

    operations: int = 0
    cases: int = 0
    statuses: Counter = dataclasses.field(default_factory=Counter)
    failures: dict[str, str] = dataclasses.field(default_factory=dict)


def fuzz(examples: int) -> dict[str, Surface]:
    """Return what came of so many requests for each operation of each port."""
    with tempfile.TemporaryDirectory(prefix="blindai-api-") as folder:
        vault = Path(folder) / "vault"
        with serving("--sealed-models", vault) as server:
            put = "/blindai/v1/models/m"
            assert request(server, "PUT", put, identity(), authorized(server)).status == 201
            pinned = Path(folder) / "root.pem"
            pinned.write_bytes(root_of(server))
            with closing(requests.Session()) as session:
                session.verify = str(pinned)
                session.trust_env = False
                found = {
                    "attested": _ask(
                        f"https://localhost:{server.address.rsplit(':', 1)[1]}",
                        session,
                        examples,
                        token=server.token,
                    ),
                    "unattested": _ask(f"http://{server.public_address}", session, examples),
                }
            alive = request(server, "GET", "/v2/health/ready").status == 200
            ended = server.stop()
            logged = [line for line in ended.log if "error" in line]
            if not alive or ended.status != 0 or logged:
                found["attested"].failures["the server afterwards"] = f"{ended.status} {logged[:3]}"
            return found


def _ask(base: str, session: requests.Session, examples: int, token: str | None = None) -> Surface:
    surface = Surface()
    document = session.get(f"{base}/openapi.json", timeout=20).json()
    schema = schemathesis.openapi.from_dict(document)
    checks = CHECKS.get_by_names(list(JUDGED))
    for result in schema.get_all_operations():
        operation = result.ok()
        surface.operations += 1

        def ask(case) -> None:
            if case.method != "DELETE" and "name" in case.path_parameters and surface.cases % 3:
                case.path_parameters["name"] = "m"  # that there is, or all would be 404
            headers = {"Authorization": f"Bearer {token}"} if token and surface.cases % 2 else {}
            response = case.call(
                base_url=base, session=session, headers=headers, timeout=30, verify=session.verify
            )
            surface.cases += 1
            surface.statuses[response.status_code] += 1
            if response.status_code == NOT_SERVED:
                return  # an extension, and the document says so
            try:
                case.validate_response(response, checks=checks)
            except FailureGroup as group:
                for failure in group.exceptions:
                    what = f"{case.operation.label}: {failure.title}: {response.status_code}"
                    surface.failures.setdefault(what, str(failure)[:600])

        for mode in GenerationMode:
            # What has no parameters and no body cannot be asked wrongly.
            with contextlib.suppress(hypothesis.errors.Unsatisfiable, SkipTest):
                hypothesis.settings(
                    max_examples=examples,
                    deadline=None,
                    database=None,
                    phases=[Phase.explicit, Phase.generate],
                    suppress_health_check=list(HealthCheck),
                )(hypothesis.given(case=operation.as_strategy(generation_mode=mode))(ask))()
    return surface


if __name__ == "__main__":
    for name, found in fuzz(20).items():
        print(name, found)  # noqa: T201 - to try it
