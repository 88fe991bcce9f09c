"""Whether the Hugging Face hub can be asked at all."""

import socket
from functools import cache
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants


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
