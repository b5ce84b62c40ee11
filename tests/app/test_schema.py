"""Schemathesis asks what the server's own OpenAPI schema allows, and what it does not: no answer is a 5xx."""

import base64
import io
import time

import numpy as np
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from PIL import Image

import segue
from segue.app.kept.inputs import Inputs
from segue.app.runner import Runner
from segue.app.server import create_app

EXAMPLES = 10
HEADERS = {"authorization": "Bearer secret"}
DRAWN = {"steps": 2, "count": 1, "n": 1, "frames": 5}  # what is drawn is not looked at


def picture_in_base64():
    data = io.BytesIO()
    Image.fromarray(np.full((40, 40, 3), 90, np.uint8)).save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()


def done(runner, job):
    while not runner.store.get(job.id).over:
        time.sleep(0.05)
    assert runner.store.get(job.id).state == "done"
    return job.id


def test_no_request_to_any_endpoint_ends_in_a_defect(tmp_path, video_bundle):
    models = {"emoji": segue.open("emoji"), "film": segue.open(video_bundle)}
    image = picture_in_base64()
    with Runner(models, tmp_path, limit=2) as runner:
        schema = schemathesis.openapi.from_asgi(
            "/openapi.json", create_app(runner, "secret", 1 << 20, local=False), headers=HEADERS
        )
        asked, wrong = {}, []
        grey = np.full((64, 64, 3), 90, np.uint8)
        real = [
            done(runner, runner.submit("picture", None, {"prompt": "a red heart", "steps": 1})),
            done(runner, runner.submit("video", None, {"frames": 5}, Inputs(grey))),
        ]

        for result in schema.get_all_operations():
            operation = result.ok()
            found = asked.setdefault(operation.label, [])

            @settings(
                max_examples=EXAMPLES, deadline=None, phases=[Phase.explicit, Phase.generate], derandomize=True,
                database=None, suppress_health_check=list(HealthCheck),
            )  # fmt: skip
            @given(case=operation.as_strategy())
            def ask(case):
                deletes = case.method.upper() == "DELETE"  # the real jobs are still needed
                if len(found) % 2 and "identifier" in (case.path_parameters or {}) and not deletes:  # noqa: B023
                    case.path_parameters["identifier"] = real[len(found) // 2 % 2]  # noqa: B023
                if isinstance(case.body, dict):
                    for name, most in DRAWN.items():
                        if isinstance(case.body.get(name), int):
                            case.body[name] = min(case.body[name], most)
                    if case.body.get("kind") == "video" and len(found) % 2:  # noqa: B023
                        case.body |= {"image": image, "image_job": None, "bundle": None}
                answer = case.call(headers=HEADERS)
                found.append(answer.status_code)  # noqa: B023  it is called in this turn of the loop
                if answer.status_code >= 500:
                    wrong.append((case.as_curl_command(), answer.text))

            ask()
    assert not wrong
    assert len(asked) == 17
    assert {200, 404} <= set(asked["GET /v1/jobs/{identifier}"])
    assert 200 in asked["GET /v1/jobs/{identifier}/video"]
    assert 200 in asked["POST /v1/images/generations"]
