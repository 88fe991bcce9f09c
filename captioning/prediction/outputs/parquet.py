"""Parquet: a table that pyarrow, pandas, DuckDB and `datasets` read by columns."""

from pathlib import Path
from typing import IO, Any

from captioning.data.readers.tables import needed
from captioning.prediction.inputs import InputPictures
from captioning.prediction.journal import LEFT_OUT, CaptionedPicture, rounded
from captioning.prediction.outputs.files import Format

ROWS = 10_000  # of a row group


class ParquetTable(Format):
    """Columns `key`, `path` (of pictures in shards: `shard`), `caption`, `log_probability`, `alternatives` (a list of
    captions with theirs), `error`, `width`, `height`; and `image_id` where the first picture has one. The first one
    decides which of the two; beside pictures of shards, the key of another is its path.
    """

    holds_alternatives = True
    holds_sizes = True

    def __init__(self, file: IO[bytes], pictures: InputPictures | None = None):
        super().__init__(file)
        self._rows: list[dict[str, Any]] = []
        self._writer: Any = None

    @classmethod
    def check(cls, output: str | Path, pictures: InputPictures) -> None:
        """Raise UserError where pyarrow is not installed."""
        needed("pyarrow", "parquet")

    def add(self, record: CaptionedPicture) -> None:
        """A row, written with those around it."""
        if self._writer is None:
            self._begin(record)
        row = {
            "key": self._without_key(record.path) if record.key is None else record.key,
            "path": record.path,
            "shard": record.shard,
            "image_id": record.image_id,
            "caption": record.caption,
            "log_probability": rounded(record.log_probability),
            "alternatives": [{"caption": one, "log_probability": rounded(p)} for one, p in record.alternatives] or None,
            "error": record.error,
            "width": record.width,
            "height": record.height,
        }
        self._rows.append({name: as_utf8(value) for name, value in row.items()})
        if len(self._rows) == ROWS:
            self._write()

    def _without_key(self, path: str) -> str:
        return path if "shard" in self._schema.names else Path(path).stem

    def _begin(self, first: CaptionedPicture | None) -> None:
        pyarrow, parquet = needed("pyarrow", "parquet"), needed("pyarrow.parquet", "parquet")
        text, number = pyarrow.string(), pyarrow.float64()
        kinds = {"key": text, "shard" if first and first.shard else "path": text}
        if first and first.image_id is not None:
            kinds["image_id"] = pyarrow.int64() if isinstance(first.image_id, int) else text
        one = pyarrow.struct([("caption", text), ("log_probability", number)])
        kinds |= {"caption": text, "log_probability": number, "alternatives": pyarrow.list_(one), "error": text}
        kinds |= {"width": pyarrow.int32(), "height": pyarrow.int32()}
        self._schema = pyarrow.schema(list(kinds.items()))
        self._writer = parquet.ParquetWriter(self.file, self._schema, compression="zstd")

    def _write(self) -> None:
        table = needed("pyarrow", "parquet").Table.from_pylist(self._rows, schema=self._schema)
        self._writer.write_table(table)
        self._rows = []

    def finish(self) -> None:
        """The last rows, and the file's end."""
        if self._writer is None:
            self._begin(None)
        if self._rows:
            self._write()
        self._writer.close()

    @classmethod
    def counts(cls, file: IO[bytes]) -> tuple[int, int]:
        """Rows with a caption, and without."""
        errors = needed("pyarrow.parquet", "parquet").read_table(file, columns=["error"])["error"]
        failed = sum(one is not None and not one.startswith(LEFT_OUT) for one in errors.to_pylist())
        return errors.null_count, failed


def as_utf8(value: Any) -> Any:
    r"""Text whose bytes are no UTF-8 as JSON has it.

    >>> as_utf8("a\udcff.jpg")
    'a\\udcff.jpg'
    """
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
