"""Building from configuration, and what a person sees of a mistake."""

from dataclasses import dataclass

import pytest
from omegaconf import OmegaConf
from torch._utils import ExceptionWrapper

from captioning.cli import built, one_sentence_errors
from captioning.errors import UserError


@dataclass
class Thing:
    """What the tests build."""

    size: int
    names: list

    def __post_init__(self) -> None:
        if self.size < 0:
            raise UserError(f"thing.size={self.size} must be above 0")
        if self.size == 0:
            raise ValueError("nothing\nfits into 0")
        if self.size > 100:
            raise ZeroDivisionError("our own bug")


def thing(**values):
    return OmegaConf.create({"_target_": f"{__name__}.Thing", "size": 3, "names": ["a"], **values})


@pytest.fixture(autouse=True)
def no_trace_asked_for(monkeypatch):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)


def test_a_users_mistake_ends_in_one_sentence_and_status_1():
    with pytest.raises(SystemExit) as end, one_sentence_errors():
        raise UserError("size=0 must be above 0")
    assert end.value.code == "error: size=0 must be above 0", "which Python prints, and ends with status 1"


def test_the_trace_is_there_for_the_asking(monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(UserError, match="size=0"), one_sentence_errors():
        raise UserError("size=0 must be above 0")


def test_a_bug_keeps_its_trace():
    with pytest.raises(ZeroDivisionError), one_sentence_errors():
        raise ZeroDivisionError


def test_an_interruption_is_no_error():
    with pytest.raises(SystemExit) as end, one_sentence_errors():
        raise KeyboardInterrupt
    assert end.value.code == "interrupted"


def test_the_sentence_of_a_loader_worker_comes_without_its_trace():
    with pytest.raises(SystemExit) as end, one_sentence_errors():
        try:
            try:
                raise OSError("cannot read")
            except OSError as error:
                raise UserError("a.jpg cannot be read; data.on_missing=skip leaves such files out") from error
        except UserError:
            sent = ExceptionWrapper(where="in DataLoader worker process 0")  # what torch's workers send home
        assert "Traceback" in sent.exc_msg
        sent.reraise()
    assert end.value.code == "error: a.jpg cannot be read; data.on_missing=skip leaves such files out"


def test_what_is_built_gets_plain_containers():
    made = built(thing(), "thing")
    assert (made.size, made.names) == (3, ["a"]) and type(made.names) is list
    assert built(thing(), "thing", size=5).size == 5


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"size": -1}, r"^thing\.size=-1 must be above 0$"),
        ({"size": 0}, r"^group cannot be set up so: nothing fits into 0$"),
        ({"colour": "red"}, r"^group cannot be set up so: .*unexpected keyword argument 'colour'"),
        ({"size": "${nowhere}"}, r"^the configuration of group is incomplete: .*nowhere"),
        ({"size": "???"}, r"^the configuration of group is incomplete: .*size"),
    ],
)
def test_what_a_constructor_objects_to_names_the_key(values, said):
    with pytest.raises(UserError, match=said) as raised:
        built(thing(**values), "group")
    assert "\n" not in str(raised.value)


def test_a_bug_in_a_constructor_stays_a_bug():
    with pytest.raises(Exception, match="our own bug") as raised:
        built(thing(size=101), "group")
    assert not isinstance(raised.value, UserError)
