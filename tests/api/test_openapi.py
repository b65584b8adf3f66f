"""The OpenAPI page: it is valid, it is whole, and the service does what it says."""

from __future__ import annotations

import re
from contextlib import suppress

import httpx
import pydantic
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.core.control import SkipTest
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from api import examples as written
from api import schemas

CALLS = {
    ("POST", "/plans"), ("POST", "/jobs"), ("GET", "/jobs"), ("GET", "/jobs/{job_id}"), ("POST", "/jobs/{job_id}/cancel"),
    ("GET", "/jobs/{job_id}/events"), ("GET", "/jobs/{job_id}/logs"), ("GET", "/jobs/{job_id}/losses"),
    ("GET", "/jobs/{job_id}/transfer"), ("GET", "/jobs/{job_id}/groups"), ("GET", "/jobs/{job_id}/checkpoints"),
    ("GET", "/jobs/{job_id}/checkpoints/{which}/{name}"), ("GET", "/catalog"), ("GET", "/workers"),
    ("GET", "/health/live"), ("GET", "/health/ready"),
    ("POST", "/jobs/{job_id}/pause"), ("POST", "/jobs/{job_id}/resume"), ("POST", "/jobs/{job_id}/fork"),
    ("GET", "/jobs/{job_id}/evaluation"), ("GET", "/jobs/{job_id}/samples"),
    ("DELETE", "/jobs/{job_id}"), ("PATCH", "/jobs/{job_id}"),
    ("PATCH", "/jobs/{job_id}/groups/{group}"), ("POST", "/workers/{name}/drain"),
    ("POST", "/datasets"), ("GET", "/datasets"), ("GET", "/datasets/{dataset_id}"), ("DELETE", "/datasets/{dataset_id}"),
}  # fmt: skip


@pytest.fixture(scope="module")
def document(url: str) -> dict:
    return httpx.get(f"{url}/openapi.json", timeout=60).json()


def operations(document):
    return {(method.upper(), path): operation for path, item in document["paths"].items() for method, operation in item.items()}


def test_it_has_these_calls_and_no_other(document):
    assert set(operations(document)) == CALLS


def test_the_page_needs_no_other_host(url):
    page = httpx.get(f"{url}/docs").text
    sources = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(sources) == 3  # a style, an icon, a script
    for source in sources:
        assert source.startswith("/")
        assert httpx.get(url + source).status_code == 200


def test_every_call_has_a_tag_a_summary_a_description_and_its_problems(document):
    tags = {tag["name"] for tag in document["tags"]}
    for (_, path), operation in operations(document).items():
        assert set(operation["tags"]) <= tags
        assert operation["summary"]
        assert operation["description"]
        if path != "/health/live":
            content = [answer["content"] for status, answer in operation["responses"].items() if int(status) >= 400]
            assert content
            assert all(list(kinds) == ["application/problem+json"] for kinds in content)


def test_the_examples_are_served_as_they_are_written_nulls_too(document):
    def examples(method, path):
        return [content["examples"] for content in operations(document)[method, path]["requestBody"]["content"].values()]

    assert examples("POST", "/jobs") == examples("POST", "/plans") == [written.SPECS]
    assert examples("POST", "/jobs/{job_id}/fork") == [written.FORKS] * 2
    assert examples("PATCH", "/jobs/{job_id}") == [written.JOB_PATCHES] * 2
    assert examples("PATCH", "/jobs/{job_id}/groups/{group}")[0] == written.GROUP_PATCHES


def test_every_reference_leads_somewhere(document):
    def references(node):
        if isinstance(node, dict):
            if isinstance(node.get("$ref"), str):
                yield node["$ref"]
            for value in node.values():
                yield from references(value)
        elif isinstance(node, list):
            for value in node:
                yield from references(value)

    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert set(references(document)) <= known


def test_what_is_answered_fits_the_models(bench, client, transfer, groups):
    job_id = bench.running()
    bench.append(job_id, (0, "transfer", transfer), (0, "groups", groups), (0, "log", {"level": "info", "message": "hi"}))
    bench.losses(job_id, first=0, losses=[1.0, "nan"])
    bench.epoch(job_id, epoch=0, step=2)
    bench.checkpoint(job_id, epoch=0, step=2, top1=0.5)
    adjusted = {"id": 1, "group": "head", "step": 2, "changes": {"lr": {"from": 0.01, "to": 0.1}}, "by": "api", "refused": None}
    told = {"epoch": 0, "task": "multiclass", "samples": 2, "per_class": {}, "confused": [], "hardest": []}
    rule = {"rule": "spike", "action": "cut_lr", "step": 1, "value": 9.0, "limit": 4.0, "message": "the loss was 9"}
    bench.append(job_id, (2, "evaluation", told | {"confused_left_out": 0}), (2, "rule", rule))
    bench.append(job_id, (2, "left_out", {"split": "training", "since": 0, "samples": [7]}))
    bench.append(job_id, (2, "adjusted", adjusted), (2, "rewound", {"to_step": 2}))
    bench.finish(job_id)
    for path, model in [
        (f"/jobs/{job_id}", schemas.Job),
        ("/jobs", schemas.JobPage),
        (f"/jobs/{job_id}/events", schemas.EventPage),
        (f"/jobs/{job_id}/losses", schemas.Losses),
        (f"/jobs/{job_id}/losses?points=1", schemas.Losses),
        (f"/jobs/{job_id}/transfer", schemas.TransferData),
        (f"/jobs/{job_id}/groups", schemas.GroupsNow),
        (f"/jobs/{job_id}/evaluation", schemas.Evaluation),
        (f"/jobs/{job_id}/checkpoints", schemas.Checkpoints),
        ("/workers", schemas.Workers),
    ]:
        answer = client.get(path).json()
        strict = pydantic.create_model("Strict", __base__=model, __config__=None)
        assert set(answer) <= set(strict.model_fields), path
        strict.model_validate(answer)
    kinds = [event["kind"] for event in client.get(f"/jobs/{job_id}/events").json()["data"]]
    assert set(kinds) == set(schemas.TYPED_EVENTS)


CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance,
]  # fmt: skip
STREAMS = ["/jobs/{job_id}/events", "/jobs/{job_id}/logs"]
SANDBOX = ["/plans", "/catalog", "/jobs/{job_id}/samples"]


@pytest.mark.slow  # hundreds of requests
@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_the_service_does_what_the_page_says(url, bench, mode):
    """Generated requests, those that fit the schema and those that do not: no 500, and each answer is a declared one."""
    bench.finish(bench.running())
    modes = [schemathesis.GenerationMode(mode)]
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json").exclude(path=[*STREAMS, *SANDBOX])
    schema = schema.exclude(path="/datasets", method="POST")  # an archive, for the sandbox too
    schema.config.generation.update(modes=modes)
    checked = 0
    for result in schema.get_all_operations():
        operation = result.ok()

        @settings(
            max_examples=6, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(case=operation.as_strategy(generation_mode=modes[0]))
        def run(case):
            nonlocal checked
            response = case.call(base_url=url, timeout=60)
            case.validate_response(response, checks=CHECKS)
            checked += 1

        with suppress(SkipTest):  # a call without parameters cannot be called wrongly
            run()
    assert checked > 30
