"""`data=folder`: every form gives the same pictures, captions and splits; and what a user reads where one does not."""

import pytest
from data_sets import heard  # noqa: F401  # a fixture for all
from forms import FORMS, write_form

from captioning.data.readers.folder import OwnFolder, read_folder


def rows_of(root, **keys):
    photographs, _ = read_folder(OwnFolder(root, **keys))
    return [(p.path.relative_to(root).as_posix(), p.captions, p.split) for p in photographs]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_rows(tmp_path, form):
    if "arquet" in form:
        pytest.importorskip("pyarrow")
    keys, rows = write_form(tmp_path, form)
    assert rows_of(tmp_path, **keys) == rows
