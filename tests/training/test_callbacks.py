"""The table of results, where scores were logged and where not."""

import math
from types import SimpleNamespace

from captioning.training.reports import ResultsTable


def table_of(tmp_path, epochs: list[dict], saved: dict | None = None) -> list[list[str]]:
    """The cells of `results.md` after these epochs' metrics."""
    table = ResultsTable(tmp_path)
    if saved:
        table.load_state_dict(saved)
    for epoch, metrics in enumerate(epochs, start=len(saved["rows"]) if saved else 0):
        trainer = SimpleNamespace(is_global_zero=True, callback_metrics=metrics, current_epoch=epoch)
        table.on_train_epoch_end(trainer, None)
    lines = (tmp_path / "results.md").read_text().splitlines()
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "---" not in line]


def test_scores_have_columns_where_they_were_logged(tmp_path):
    losses = {"train/loss_epoch": 1.0, "train/perplexity_epoch": 2.7, "val/loss": 1.5, "val/perplexity": 4.5}
    cells = table_of(tmp_path, [losses, {**losses, "val/cider": 0.25, "val/rouge_l": 0.5}])
    assert cells[0][:5] == ["Epoch", "Train Loss", "Train Perplexity", "Val Loss", "Val Perplexity"]
    assert cells[0][5:] == ["Val CIDEr", "Val ROUGE-L"]
    assert [row[5:] for row in cells[1:]] == [["-", "-"], ["0.2500", "0.5000"]]


def test_a_checkpoint_from_before_there_were_scores_goes_on(tmp_path):
    saved = {"rows": {0: [1.0, 2.0, 3.0, math.nan]}}
    cells = table_of(tmp_path, [{"val/bleu_4": 0.3}], saved)
    assert cells[1] == ["0", "1.0000", "2.0000", "3.0000", "-", "-"]
    assert cells[2] == ["1", "-", "-", "-", "-", "0.3000"]
