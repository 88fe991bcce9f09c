"""The hub as far as it can be tested without one."""

import pytest
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from captioning import hub
from captioning.errors import UserError
from captioning.hub import could_be_hub_name, pushed, require_push


@pytest.mark.parametrize(
    ("text", "could_be"),
    [("owner/name", True), ("gpt2", False), ("/owner/name", False), ("./name", False), ("there/name", False)],
)
def test_names_are_told_from_paths(monkeypatch, tmp_path, text, could_be):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    assert could_be_hub_name(text) is could_be


def test_without_a_network_a_push_is_refused_before_anything_is_made():
    with pytest.raises(UserError, match=r"--push me/mine: the Hugging Face hub can't be reached .* hf upload me/mine"):
        require_push("me/mine")


def test_a_push_needs_a_name_and_a_token(monkeypatch):
    with pytest.raises(UserError, match=r"--push a/b/c is no name for the hub; give OWNER/NAME"):
        require_push("a/b/c")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "out_of_reach", lambda: False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(
        UserError, match=r"--push me/mine needs a token of your Hugging Face account; log in with hf auth"
    ):
        require_push("me/mine")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "secret")
    require_push("me/mine")


class Hub:
    """Takes a folder, or not."""

    def __init__(self, error: Exception | None = None):
        self.error, self.taken = error, []

    def create_repo(self, name: str, exist_ok: bool) -> str:
        if self.error:
            raise self.error
        return f"https://huggingface.co/{name}"

    def upload_folder(self, repo_id: str, folder_path) -> None:
        self.taken.append((repo_id, folder_path))


def test_a_folder_is_uploaded_under_its_name(monkeypatch, tmp_path):
    online = Hub()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: online)
    assert pushed(tmp_path, "me/mine") == "https://huggingface.co/me/mine"
    assert online.taken == [("me/mine", tmp_path)]


def test_a_refusal_of_the_hub_is_a_sentence(monkeypatch, tmp_path):
    assert issubclass(RepositoryNotFoundError, HfHubHTTPError) and issubclass(HfHubHTTPError, OSError)
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: Hub(OSError("403 Forbidden: not yours\nmore")))
    with pytest.raises(
        UserError, match=rf"--push me/mine failed: 403 Forbidden: not yours; the model is in {tmp_path}"
    ):
        pushed(tmp_path, "me/mine")
