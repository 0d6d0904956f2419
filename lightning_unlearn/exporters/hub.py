"""Upload of a model folder to the Hugging Face Hub. It needs the extra `hub`, a token and a network."""

import re
from pathlib import Path
from typing import Any


def signed_in(repo_id: str) -> Any:
    """Return the Hub's client, after a sign-in that shows that an upload is possible.

    Args:
        repo_id: `OWNER/NAME` of the repository.

    Raises:
        ValueError: The name is impossible, or package, token or network are missing.
    """
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]{0,95}", repo_id, re.ASCII):
        raise ValueError(f"--push {repo_id} is not possible: name the repository as OWNER/NAME.")
    try:
        from huggingface_hub import HfApi, get_token
        from huggingface_hub.errors import HTTPError
    except ImportError as error:
        raise ValueError(
            f"--push {repo_id} needs huggingface_hub, which is not installed: install this package with its extra "
            "`hub`, or leave out --push and upload the folder by other means."
        ) from error
    if get_token() is None:
        raise ValueError(
            f"--push {repo_id} needs a token of the Hugging Face Hub: set the variable HF_TOKEN, or run "
            "`hf auth login`. Without --push the folder is written and nothing is uploaded."
        )
    client = HfApi()
    try:
        client.whoami()
    except (OSError, HTTPError) as error:
        raise ValueError(
            f"--push {repo_id}: {client.endpoint} let nobody sign in ({reason(error)}): check network and token, or "
            "leave out --push."
        ) from error
    return client


def upload(client: Any, folder: Path, repo_id: str) -> str:
    """Upload a folder into a repository, which is made if it is missing; return its address.

    Raises:
        ValueError: The Hub refused it, or the network failed; the folder stays as it is.
    """
    from huggingface_hub.errors import HTTPError

    try:
        client.create_repo(repo_id, exist_ok=True)
        client.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Add the model")
    except (OSError, HTTPError) as error:
        raise ValueError(
            f"--push {repo_id} failed ({reason(error)}). The folder is complete: upload it with "
            f"`hf upload {repo_id} {folder}`."
        ) from error
    return f"{client.endpoint}/{repo_id}"


def reason(error: Exception) -> str:
    """Return a fault's class and first line."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
