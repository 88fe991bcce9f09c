"""Train a Vision Transformer plus GPT-2 to caption photographs, and caption folders of photographs with it."""

import os
from typing import Any

# Before torch is imported, which reads it then: tensors of 2 MB and more lie in pages of 2 MB where Linux has them
# ([madvise] or [always] in /sys/kernel/mm/transparent_hugepage/enabled). Products with the vocabulary's matrix, 150 MB
# at full size, reach 1.3 to 2.5 times the speed so on a CPU.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__all__ = ["Captioner", "predict", "train"]


def __getattr__(name: str) -> Any:
    """What `captioning.api` has, imported when it is asked for: that takes seconds, and scripts answer sooner."""
    if name in __all__:
        from captioning import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
