"""Switches of a captioner that change its speed and memory, and none of its numbers."""

import os
import shutil
import sys
from typing import Any

from captioning.errors import UserError
from captioning.model.captioner import ImageCaptioner


def switched(captioner: ImageCaptioner, gradient_checkpointing: bool, compile: bool) -> ImageCaptioner:
    """The same captioner, its activations recomputed in the backward pass, or its halves compiled, or both.

    Raises:
        UserError: if there is no compiler.
    """
    halves: tuple[Any, Any] = (captioner.network.encoder, captioner.network.decoder.transformer)
    if gradient_checkpointing:
        for half in halves:  # by its newer name where transformers has it
            enable = getattr(half, "activation_checkpointing_enable", None) or half.gradient_checkpointing_enable
            enable({"use_reentrant": False})
    if compile:
        _require_compiler()
        # In place, so that the names of the weights stay as they are.
        for half in halves:
            half.compile(dynamic=True)
    return captioner


def _require_compiler() -> None:
    """torch.compile writes C++ and has it compiled at the first step; without a compiler it fails there, at length."""
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")  # as torch looks for it
    if sys.platform != "win32" and shutil.which(compiler) is None:
        raise UserError(
            f"model.compile=true needs a C++ compiler and {compiler} is not on this machine; install it, "
            "name another in the environment variable CXX, or set model.compile=false"
        )
