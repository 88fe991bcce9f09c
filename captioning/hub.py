"""The Hugging Face hub: whether it can be asked at all, single files from it, and folders to it.

Its client is imported where it is used: that takes a third of a second, and most commands don't ask it.
"""

import socket
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from captioning.errors import UserError


@cache
def out_of_reach() -> bool:
    """Whether this machine cannot even resolve the hub's name; what is in the local cache is then all there is.

    The hub's own client would try again for half a minute, for each file. Behind a proxy only the proxy knows names,
    so the hub counts as within reach.
    """
    from huggingface_hub import constants

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
    return _is_name(text)


def _is_name(text: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return True


@cache  # a command looks at a name before it imports what loads it, and then once more
def fetched_file(name: str, file: str) -> Path:
    """One file of the hub's model `name`, from the local cache if the hub is out of reach.

    Raises:
        OSError or ValueError: the hub's client's own, if it is not available.
    """
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(name, file, local_files_only=out_of_reach()))


def require_push(name: str) -> None:
    """Raise UserError unless a folder can be uploaded under this name: a name, a hub within reach, and a token."""
    from huggingface_hub import constants, get_token

    if not _is_name(name):
        raise UserError(f"--push {name} is no name for the hub; give OWNER/NAME")
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
    from huggingface_hub import HfApi

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
