"""Train a Vision Transformer plus GPT-2 to caption photographs, and caption folders of photographs with it."""

from typing import Any

__all__ = ["Captioner", "predict", "train"]


def __getattr__(name: str) -> Any:
    """What `captioning.api` has, imported when it is asked for: that takes seconds, and scripts answer sooner."""
    if name in __all__:
        from captioning import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
