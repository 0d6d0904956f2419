"""A registered model as MLflow's users know it: signature, input example, predictions, and serving."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.models import Model

from lightning_unlearn.tracking import registry
from lightning_unlearn.tracking.model_files import PyfuncPolicy

pytestmark = pytest.mark.filterwarnings("ignore:.*Any type hint is inferred")  # while MLflow imports its own modules
ROWS = [[0.1, 0.2], [-0.5, 0.9], [0.0, 0.0]]
NAME = "concept.ToyLine-v0"


@pytest.fixture
def uri(register):
    return register("concept", 50)


def expected(uri, rows=ROWS):
    policy = registry.load_policy(uri).policy
    return policy.act(torch.tensor(rows, dtype=torch.float32)).detach().numpy()


def test_a_version_has_a_signature_and_an_input_example_that_it_answers(uri):
    model = mlflow.pyfunc.load_model(uri)
    example = model.input_example
    assert (example.shape, example.dtype) == ((1, 2), np.float32)
    np.testing.assert_array_equal(model.predict(example), expected(uri, [[0.0, 0.0]]))
    signature = Model.load(uri).signature
    assert [spec.shape for spec in (*signature.inputs, *signature.outputs)] == [(-1, 2), (-1, 1)]


@pytest.mark.parametrize(
    "given",
    [
        ROWS,
        np.array(ROWS),
        np.array(ROWS, np.float32),
        pd.DataFrame(ROWS),
        pd.DataFrame(ROWS, columns=["place", "time"], dtype=np.float32),
    ],
    ids=["list", "float64", "float32", "pandas", "pandas float32"],
)
def test_the_policy_predicts_from_lists_arrays_and_tables(uri, given):
    found = PyfuncPolicy(registry.load_policy(uri).policy).predict(given)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected(uri))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([0.1, 0.2], r"has the shape \(2,\): pass N observations of 2 numbers, \(N, 2\)"),
        ([[0.1, 0.2, 0.3]], r"has the shape \(1, 3\)"),
        (pd.DataFrame([[1.0]]), r"has the shape \(1, 1\)"),
        ([[0.1], [0.1, 0.2]], "is no table of numbers: pass N observations of 2 numbers"),
        ([["left", "right"]], "is no table of numbers"),
    ],
)
def test_input_of_another_shape_is_refused_with_the_shape_to_use(uri, given, message):
    with pytest.raises(ValueError, match=message):
        PyfuncPolicy(registry.load_policy(uri).policy).predict(given)


REQUESTS = {
    "list": {"inputs": ROWS},
    "instances": {"instances": ROWS},
    "pandas split": {"dataframe_split": {"columns": ["place", "time"], "data": ROWS}},
    "pandas records": {"dataframe_records": [{"place": place, "time": moment} for place, moment in ROWS]},
}
WRONG = {
    "another size": ({"inputs": [[0.1, 0.2, 0.3]]}, "does not match expected shape (-1, 2)"),
    "one observation without its row": ({"inputs": [0.1, 0.2]}, "does not match expected shape (-1, 2)"),
    "pandas of another size": ({"dataframe_split": {"data": [[0.1, 0.2, 0.3]]}}, "3 columns"),
    "no observations": ({"rows": ROWS}, "inputs"),
}


def answered(model, content):
    """Status and content of what `mlflow models serve` answers, without its HTTP server."""
    from mlflow.pyfunc import scoring_server

    schema = model.metadata.get_input_schema()
    response = scoring_server.invocations(json.dumps(content), "application/json", model, schema)
    return response.status, json.loads(response.response)


@pytest.mark.parametrize("content", REQUESTS.values(), ids=REQUESTS)
def test_a_request_in_each_format_of_mlflow_is_answered(uri, content):
    status, answer = answered(mlflow.pyfunc.load_model(uri), content)
    assert status == 200
    np.testing.assert_allclose(answer["predictions"], expected(uri), rtol=1e-6)


@pytest.mark.parametrize(("content", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_request_is_refused_with_what_was_expected(uri, content, message):
    model = mlflow.pyfunc.load_model(uri)
    with pytest.raises(mlflow.MlflowException) as refused:
        answered(model, content)
    assert message in str(refused.value)
    assert refused.value.get_http_status_code() == 400


def posted(port, content):
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations", json.dumps(content).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def wait_for(port, process):
    for _ in range(600):
        assert process.poll() is None, "the server ended"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5) as response:
                return response.status
        except OSError:
            time.sleep(0.2)
    raise TimeoutError("the server does not answer")


@pytest.mark.slow
def test_mlflow_models_serve_answers(uri, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local", "-m", uri, "-p", str(port)]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # it calls uvicorn by its name
    environment = os.environ | {"MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(), "PATH": path}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        assert wait_for(port, process) == 200
        for content in REQUESTS.values():
            status, answer = posted(port, content)
            assert status == 200
            np.testing.assert_allclose(answer["predictions"], expected(uri), rtol=1e-6)
        for content, message in WRONG.values():
            status, answer = posted(port, content)
            assert status == 400
            assert message in answer["message"]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)
