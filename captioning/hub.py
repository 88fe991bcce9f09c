"""The Hugging Face hub: whether it can be asked at all, and single files of it."""

import socket
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import HfApi, constants, get_token, hf_hub_download
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from captioning.errors import UserError


@cache
def out_of_reach() -> bool:
    """Whether this machine cannot even resolve the hub's name; what is in the local cache is then all there is.

    The hub's own client would try again for half a minute, for each file. Behind a proxy only the proxy knows names,
    so the hub counts as within reach.
    """
    if getproxies():
        return False
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443)
    except OSError:
        return True
    return False


def could_be_hub_name(text: str) -> bool:
    """Whether this is meant as `OWNER/NAME` on the hub, and not as a path in a folder that is there."""
    owner, slash, name = text.partition("/")
    if not slash or Path(owner).exists() or name.endswith(".ckpt"):
        return False
    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return True


def fetched_file(name: str, file: str) -> Path:
    """One file of the hub's model `name`, from the local cache if the hub is out of reach.

    Raises:
        OSError or ValueError: the hub's client's own, if it is not to be had.
    """
    return Path(hf_hub_download(name, file, local_files_only=out_of_reach()))


def require_push(name: str) -> None:
    """Raise UserError unless a folder can be uploaded under this name: a name, a hub within reach, and a token."""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"--push {name} is no name for the hub; give OWNER/NAME") from error
    if constants.HF_HUB_OFFLINE or out_of_reach():
        raise UserError(
            f"--push {name}: the Hugging Face hub can't be reached from here; leave --push out, and upload the folder "
            f"where there is a network with hf upload {name} FOLDER"
        )
    if get_token() is None:
        raise UserError(f"--push {name} needs a token of your Hugging Face account; log in with hf auth login")


def pushed(folder: Path, name: str) -> str:
    """Upload the folder as the model `name`, made if need be; its address.

    Raises:
        UserError: if the hub refuses or breaks off; the folder stays.
    """
    try:
        api = HfApi()
        address = api.create_repo(name, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder)
    except (OSError, ValueError) as error:  # the client's own are of these
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"--push {name} failed: {reason}; the model is in {folder}, upload it with hf upload {name} {folder}"
        ) from error
    return str(address)
