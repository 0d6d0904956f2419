import os

import pytest

from lightning_unlearn.tracking.addresses import sign_in, without_password


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://user:pw@host:5000/x", "http://host:5000/x"),
        ("http://user:p@ss@host:5000", "http://host:5000"),
        ("http://user:p/w@host", "http://host"),
        ("https://token@host/x", "https://host/x"),
        ("request to http://user:pw@host:5/health failed", "request to http://host:5/health failed"),
        ("postgresql+psycopg2://user:pw@host/db?sslmode=on", "postgresql+psycopg2://host/db?sslmode=on"),
        ("mysql://host/db?user=u&password=pw&x=1", "mysql://host/db?user=u&password=&x=1"),
        ("http://host:5000/a@b", "http://host:5000/a@b"),
        ("sqlite:////home/me@work/mlflow.db", "sqlite:////home/me@work/mlflow.db"),
        (
            "models:/concept.X@update-3 of http://host:5000 is b@c",
            "models:/concept.X@update-3 of http://host:5000 is b@c",
        ),
    ],
)
def test_an_address_is_shown_without_its_password(text, shown):
    assert without_password(text) == shown


def test_mlflows_client_gets_user_and_password_by_its_variables(monkeypatch):
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "before")
    assert sign_in("https://me%40work:a%2Fb@host:5000/x") == "https://host:5000/x"
    assert os.environ["MLFLOW_TRACKING_USERNAME"] == "me@work"
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "a/b"
    assert sign_in("https://host") == "https://host"
    assert os.environ["MLFLOW_TRACKING_USERNAME"] == "me@work"
    with pytest.raises(ValueError, match="Write / as %2F") as refused:
        sign_in("http://me:a/b@host")
    assert "a/b" not in str(refused.value)


@pytest.mark.parametrize(
    "args",
    [
        ["models", "list", "--tracking_uri", "htp://me:secret@127.0.0.1:9"],
        ["models", "list", "--tracking_uri", "http://me:secret@127.0.0.1:9"],
        ["models", "list", "--tracking_url", "http://me:secret@127.0.0.1:9"],
    ],
)
def test_no_error_prints_a_password(store, refused, monkeypatch, args):
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")
    told = refused(*args)
    assert "tracking_ur" in told
    assert "secret" not in told
