"""The code of `docs/extending.md`, by the file that the first line of each block names: the tests run it."""

import re

from conftest import ROOT

BLOCK = re.compile(r"^```(?:python|yaml)\n# (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXAMPLES = dict(BLOCK.findall((ROOT / "docs" / "extending.md").read_text(encoding="utf-8")))
