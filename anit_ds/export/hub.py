"""An exported folder, sent to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from anit_ds.errors import InputError, ServiceError, first_line


def refuse_push(name: str) -> None:
    """Raises InputError where nothing can be sent under this name: it is no owner/name, the hub is switched off, or
    there is no token."""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise InputError(f"--push: {name!r} is no owner/name ({first_line(error)})") from error
    if "/" not in name:
        raise InputError(f"--push: {name!r} is no owner/name; whose repository is it?")
    if constants.HF_HUB_OFFLINE:
        raise InputError("--push: the hub is switched off; unset HF_HUB_OFFLINE and TRANSFORMERS_OFFLINE")
    if not get_token():
        raise InputError("--push: needs a token that may write; set HF_TOKEN, or log in with `hf auth login`")


def push(folder: Path, name: str, *, public: bool = False) -> str:
    """Send a folder to the repository `name`, which is made where it is not there, private unless `public`; one that is
    there stays as visible as it is. Returns its address. Raises ServiceError."""
    hub = HfApi()
    try:
        address = hub.create_repo(name, private=not public, exist_ok=True)
        hub.upload_folder(repo_id=name, folder_path=folder, commit_message="Export of an ANIT-DS run")
    except Exception as error:  # of the hub's client, or of the HTTP library that its version has
        raise ServiceError(
            f"{folder} is written and was not sent to {name}: {first_line(error)}; "
            f"`hf upload {name} {folder}` tries again"
        ) from error
    return str(address)
