"""Pages for a browser: templates, and the styles and scripts that they share.

A template is the body of a page, with links to its scripts; `page.html` is what is around it, with `look.css` and the
style of its name. All of it is written in one file, whose `%POLICY%` becomes a Content-Security-Policy under which
nothing else runs; other `%NAMES%` are left to the writer.
"""

import base64
import hashlib
import re
from collections.abc import Mapping
from html import escape
from importlib import resources
from types import MappingProxyType

STYLES, SCRIPTS = r'<link rel="stylesheet" href="(\S+?)">\n?', r'<script src="(\S+?)"></script>\n?'


def fill(template: str, values: Mapping[str, str]) -> str:
    """The template with each `%NAME%` replaced, once: what values hold is left as it is.

    >>> fill("<title>%TITLE%</title>%COUNT% of 100%", {"TITLE": "%COUNT%", "COUNT": "3"})
    '<title>%COUNT%</title>3 of 100%'
    """
    return re.sub("%([A-Z_]+)%", lambda marker: values.get(marker[1], marker[0]), template)


def whole_page(name: str, more: Mapping[str, str] = MappingProxyType({})) -> str:
    """The template `name` as one file, in which pictures are `data:` URIs and its own styles and scripts run alone.

    Args:
        name: of the template, without `.html`.
        more: what its Content-Security-Policy allows beside that, by directive: `{"img-src": "blob:"}`.
    """
    page = fill(_text("page.html"), {"NAME": name, "BODY": _text(f"{name}.html")})
    page, style = _inside(page, STYLES, "style")
    page, script = _inside(page, SCRIPTS, "script")
    rules = {"img-src": "data:", "style-src": style, "script-src": script}
    return _with_policy(
        page, rules | {rule: f"{rules.get(rule, '')} {sources}".strip() for rule, sources in more.items()}
    )


def joined_modules(*names: str) -> str:
    """Scripts that import from each other alone as one, which imports nothing."""
    joined = "\n".join(_text(name) for name in names)
    assert "</script" not in joined
    return re.sub(r'^import \{.*\} from "\./.*";\n|^export ', "", joined, flags=re.MULTILINE)


def _text(name: str) -> str:
    return resources.files("captioning.pages").joinpath(name).read_text(encoding="utf-8")


def _inside(page: str, links: str, element: str) -> tuple[str, str]:
    """The page with all linked files inside one element, at the place of the last, and that element's hash."""
    text = "\n" + "\n".join(_text(name) for name in re.findall(links, page))
    assert f"</{element}" not in text, f"which would end the {element}"
    *_, last = re.finditer(links, page)
    before, after = re.sub(links, "", page[: last.start()]), page[last.end() :]
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"{before}<{element}>{text}</{element}>\n{after}", f"'sha256-{digest}'"


def _with_policy(page: str, rules: Mapping[str, str]) -> str:
    rules = {"default-src": "'none'", **rules, "base-uri": "'none'", "form-action": "'none'"}
    policy = "; ".join(f"{name} {sources}" for name, sources in rules.items())
    return page.replace("%POLICY%", escape(policy))
