"""Addresses of stores, without passwords wherever they are printed, recorded or passed to a process."""

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

_USERINFO = re.compile(r"(?<=://)(?:[^\s/?#:]*:(?!\d+/)\S*|[^\s/?#]*)@")
"""User and password of an address, even if a `/` in the password was not written as %2F."""
_OPTION = re.compile(r"(?i)(?<=[?&;])((?:password|passwd|pwd)=)[^&;\s]*")


def without_password(text: str) -> str:
    """Remove user and password from all addresses in a text."""
    return _OPTION.sub(r"\1", _USERINFO.sub("", text))


def sign_in(address: str) -> str:
    """Move user and password from a server's address to the environment variables of MLflow's client.

    No message of MLflow, no record and no command line of another process can show them then.

    Returns:
        The address without them.

    Raises:
        ValueError: They cannot be told from the rest of the address.
    """
    bare, parts = without_password(address), urlsplit(address)
    if parts.username:
        os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username)
        if parts.password is not None:
            os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password)
    elif bare != address:
        raise ValueError(
            f"tracking_uri={bare}: the user and password given with it cannot be read. Write / as %2F, ? as %3F and # "
            "as %23 in them, or set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead."
        )
    return bare


def sqlite_uri(database: Path) -> str:
    """Return the URI of a SQLite file, percent-encoded if its path would be read as another one (`?`, `%20`)."""
    from sqlalchemy.engine import URL, make_url  # the help of a command does not need it

    uri = f"sqlite:///{database}"
    if make_url(uri).database == str(database):
        return uri
    return URL.create("sqlite", database=str(database)).render_as_string()
