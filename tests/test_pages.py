"""What all pages share: one file or a folder of them, of which alone the browser takes styles and scripts."""

import re

from captioning.pages import linked_page, whole_page


def policy_of(page: str) -> str:
    (policy,) = re.findall('http-equiv="Content-Security-Policy" content="(.*?)"', page)
    return policy.replace("&#x27;", "'")


def test_a_whole_page_links_to_nothing_and_a_linked_one_to_its_folder(tmp_path):
    page = whole_page("gallery")
    assert re.findall(r'(?:href|src)="(.*?)"', page) == ["data:,"]
    assert page.count("<style>") == page.count("<script>") == 1
    page = linked_page("gallery", tmp_path, {"script-src": "'self' 'wasm-unsafe-eval'", "connect-src": "'self'"})
    assert set(re.findall(r'(?:href|src)="(.*?)"', page)) == {"data:,"} | {path.name for path in tmp_path.iterdir()}
    policy = policy_of(page).split("; ")
    assert policy[0] == "default-src 'none'" and "connect-src 'self'" in policy
    assert [rule for rule in policy if rule.startswith("script-src")] == ["script-src 'self' 'wasm-unsafe-eval'"]
