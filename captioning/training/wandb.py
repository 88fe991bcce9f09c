"""Weights & Biases: its logger for runs that resume, its table of pictures, and the end of its runs.

wandb itself is imported where it is used, so that a run with another logger needs none.
"""

import logging
import netrc
import os
import shutil
import ssl
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from captioning.files import readable, write_atomically
from captioning.metrics import METRICS
from captioning.model.captioner import ImageCaptioner
from captioning.model.generation import Caption, Decoding, generate
from captioning.runs import is_first_rank
from captioning.training.lightning_internals import log_offline, without_anonymous
from captioning.training.loggers import Follower
from captioning.training.module import CaptioningModule

log = logging.getLogger(__name__)

ID_FILE = "wandb-run-id.txt"  # in a run's folder, whose W&B run has this id


class WandbRows(Follower, WandbLogger):
    """W&B's logger for runs that resume, and for disks that fill up.

    W&B can't take rows back, so those that it has are not sent again. What it can't write it drops, and training goes
    on: its service says so in its own log alone, so the disk is looked at here.
    """

    LEAST_FREE_BYTES = 2**20  # under which rows are as good as lost: W&B writes in blocks of 32 KiB

    models: bool | str = False  # which checkpoints become artifacts
    watched = ""  # of what histograms are logged
    _warned = False

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """The configuration; and of which metrics W&B's overview shows the best value beside the last."""
        super().log_hyperparams(params)
        for metric in METRICS:
            if not metric.name.startswith("test/"):  # which comes once
                best = "max" if metric.larger_is_better else "min"
                self.experiment.define_metric(metric.name, step_metric="trainer/global_step", summary=f"{best},last")

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """One row; or a table or pictures, which come before the row of their step."""
        if self.before is not None:
            is_row = all(isinstance(value, int | float) for value in metrics.values())
            if self.before.repeats if is_row else self.before.will_repeat(step):
                return
        problem = None
        try:
            super().log_metrics(metrics, step)
        except OSError as error:  # of a table or a picture, whose file this process writes
            problem = error.strerror
        if self.save_dir and shutil.disk_usage(self.save_dir).free < self.LEAST_FREE_BYTES:
            problem = "No space left on device"
        if problem and not self._warned:
            folder = readable(Path(str(self.save_dir)) / "wandb")
            said = "%s: W&B loses what does not fit into %s, from step %s on; metrics.csv has each row"
            log.warning(said, problem, folder, step)
        self._warned = bool(problem)


def wandb_logger(
    run_dir: str,
    project: str,
    name: str | None,
    log_model: bool | str = False,
    watch: str | bool = False,
    **of_run: Any,
) -> Logger:
    """A W&B logger whose run lies in `run_dir`, and continues there if the folder already has one.

    Without an API key, or where the server does not answer, it logs offline and never asks; `WANDB_MODE` and `wandb
    offline|disabled` are respected.

    Args:
        run_dir: the run's folder.
        project: W&B's.
        name: of the run; None is `WANDB_NAME`, or else the folder's, and of a multirun what its job has of its own.
        log_model: which checkpoints become artifacts, `best` or `all`; False is none.
        watch: of what histograms are logged, `gradients`, `parameters` or `all`; False is of none.
        of_run: `entity`, `group`, `job_type`, `tags`, `notes`; None is what W&B's own settings say.
    """
    import wandb

    if not is_first_rank():
        return DummyLogger()
    settings = wandb.setup().settings
    if settings.mode == "disabled":
        log.info("W&B is disabled (WANDB_MODE, or wandb disabled); metrics.csv has each row")
        return DummyLogger()
    folder = Path(run_dir)
    run_id, project, entity = _place(folder, project, of_run.get("entity") or settings.entity)
    mode = _mode(settings)
    logger = without_anonymous(
        WandbRows(
            **{key: value for key, value in of_run.items() if value} | ({"entity": entity} if entity else {}),
            project=project,
            name=name or os.environ.get("WANDB_NAME") or _of_job(folder.name),
            save_dir=run_dir,
            id=run_id,
            resume="allow" if mode == "online" else None,
            mode=mode,
            settings=wandb.Settings(console="off", silent=mode == "offline"),
        )
    )
    assert isinstance(logger, WandbRows)
    logger.models, logger.watched = log_model, str(watch or "")
    return logger


def _of_job(folder: str) -> str:
    """The folder's name; of a job of a multirun with what it was given and its neighbours were not."""
    hydra = HydraConfig.get() if HydraConfig.initialized() else None
    if hydra is None or hydra.mode != RunMode.MULTIRUN:
        return folder
    own = [override for override in hydra.overrides.task if override not in sys.argv]
    return f"{folder} {' '.join(own)}"[:128].rstrip()


def _place(folder: Path, project: str, entity: str | None) -> tuple[str, str, str]:
    """Where the run of a folder lies at W&B: its id, project and entity, as they were when it began.

    A sweep's agent gives the id of a new one; behind it, each job of a multirun has its number.
    """
    file = folder / ID_FILE
    if not file.is_file():
        given, hydra = os.environ.get("WANDB_RUN_ID"), HydraConfig.get() if HydraConfig.initialized() else None
        job = f"-{hydra.job.num}" if hydra is not None and hydra.mode == RunMode.MULTIRUN else ""
        run_id = f"{given}{job}" if given else uuid.uuid4().hex[:8]
        write_atomically(file, f"{run_id}\n{project}\n{entity or ''}\n")
    run_id, began_in, of_whom = [*file.read_text(encoding="utf-8").splitlines(), project, entity or ""][:3]
    if began_in != project:
        log.warning("the W&B run of %s stays in its project, %s, and not %s", readable(folder), began_in, project)
    return run_id, began_in, of_whom


def _mode(settings: Any) -> str:
    """`online` where there is an API key and the server answers; `wandb.login` would wait for it."""
    if settings.mode not in ("online", "run"):
        return settings.mode
    if not (os.environ.get("WANDB_API_KEY") or settings.identity_token_file or _has_logged_in(settings.base_url)):
        if "WANDB_MODE" in os.environ:
            log.warning("WANDB_MODE=%s needs an API key (wandb login); this run is logged offline", settings.mode)
        return "offline"
    if why := _unreachable(settings.base_url):
        log.warning("W&B's server %s does not answer (%s); this run is logged offline", settings.base_url, why)
        return "offline"
    return "online"


def _has_logged_in(url: str) -> bool:
    """Whether `wandb login` has left a key in .netrc."""
    host = urllib.parse.urlsplit(url).hostname
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


ANSWER_SECONDS = 5


def _unreachable(url: str) -> str:
    """Why a server does not answer; empty where it does, whatever it says."""
    found: list[str] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(url, timeout=ANSWER_SECONDS).close()
            found.append("")
        except urllib.error.HTTPError:
            found.append("")
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)  # W&B has certificates of its own
            found.append("" if isinstance(reason, ssl.SSLError) else getattr(reason, "strerror", None) or str(reason))

    asking = threading.Thread(target=ask, daemon=True)  # a name server may take longer than any timeout
    asking.start()
    asking.join(ANSWER_SECONDS + 1)
    return found[0] if found else f"for {ANSWER_SECONDS + 1} seconds"


class ModelArtifacts(L.Callback):
    """Checkpoints as versions of W&B's artifact `model-RUN_ID`: the best at the end, and each epoch's if asked for.

    The best has the aliases `best` and `latest`, others `latest` and `epoch-N`.
    """

    WATCHED_EVERY = 100  # steps between histograms

    def __init__(self, folder: Path):
        self._folder, self._sent = folder, 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for logger in _of_wandb(trainer):
            if logger.watched:
                logger.watch(pl_module, log=logger.watched, log_freq=self.WATCHED_EVERY, log_graph=False)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Of the epoch before, whose checkpoint is whole now."""
        self._send_last(trainer)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._send_last(trainer)
        best = self._folder / "best.ckpt"
        for logger in _of_wandb(trainer):
            if logger.models and best.is_file():
                self._send(logger, best, ["best", "latest"])

    def _send_last(self, trainer: L.Trainer) -> None:
        last = self._folder / "last.ckpt"
        changed = last.stat().st_mtime_ns if last.is_file() else 0
        if changed == self._sent:
            return
        self._sent = changed
        for logger in _of_wandb(trainer):
            if logger.models == "all":
                self._send(logger, last, ["latest", f"epoch-{trainer.current_epoch - 1}"])

    def _send(self, logger: WandbRows, checkpoint: Path, aliases: list[str]) -> None:
        import wandb

        artifact = wandb.Artifact(f"model-{logger.experiment.id}", type="model")
        artifact.add_file(str(checkpoint), name=checkpoint.name)
        logger.experiment.log_artifact(artifact, aliases=aliases)


def _of_wandb(trainer: L.Trainer) -> list[WandbRows]:
    return [one for one in trainer.loggers if isinstance(one, WandbRows)] if trainer.is_global_zero else []


class SampleTable(L.Callback):
    """After each validation, logs a W&B table `val/samples`: pictures, their captions and the model's.

    And for the first few, as `val/heat_maps`, where the model looked as it chose each word.

    Args:
        pixel_values: (B, 3, H, W) uint8, the same pictures each time.
        captions: the references of each.
        decoding: how the model's are generated.
        decode: token ids to text.
        draw: a strip of heat maps; called with a captioner and the keywords `pixel_values` (3, H, W) uint8,
            `token_ids`, `ended` and `panel` (pixels). None draws none.
    """

    HEAT_MAPS = 4  # pictures; each takes, with a small model, about 12 milliseconds
    PANEL = 112  # pixels, the longer side of a heat map

    COLUMNS: ClassVar = ["image_id", "picture", "captions", "generated", "log_probability"]

    def __init__(
        self,
        pixel_values: torch.Tensor,
        image_ids: list,
        captions: list[list[str]],
        decoding: Decoding,
        decode: Any,
        draw: Callable[..., Any] | None = None,
    ):
        self._pixel_values, self._image_ids, self._captions = pixel_values, image_ids, captions
        self._decoding, self._decode, self._draw = decoding, decode, draw

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loggers = [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]
        if trainer.sanity_checking or not trainer.is_global_zero or not loggers:
            return
        import wandb

        assert isinstance(pl_module, CaptioningModule)
        with trainer.precision_plugin.forward_context():
            generated = generate(pl_module.captioner, self._pixel_values.to(pl_module.device), self._decoding)
        rows = zip(self._pixel_values, self._image_ids, self._captions, generated, strict=True)
        data = [
            [
                str(image_id),
                wandb.Image(pixels.permute(1, 2, 0).numpy()),
                "\n".join(references),
                self._decode(caption.token_ids),
                caption.log_probability,
            ]
            for pixels, image_id, references, caption in rows
        ]
        for logger in loggers:
            logger.log_table("val/samples", columns=self.COLUMNS, data=data, step=trainer.global_step)
        if self._draw is not None:
            self._log_heat_maps(loggers, pl_module.captioner, generated, trainer.global_step)

    def _log_heat_maps(
        self, loggers: list[WandbLogger], captioner: ImageCaptioner, generated: list[Caption], step: int
    ) -> None:
        assert self._draw is not None
        strips, texts = [], []
        for pixels, caption in list(zip(self._pixel_values, generated, strict=True))[: self.HEAT_MAPS]:
            ended = len(caption.token_ids) < self._decoding.longest
            strips.append(
                self._draw(captioner, pixel_values=pixels, token_ids=caption.token_ids, ended=ended, panel=self.PANEL)
            )
            texts.append(self._decode(caption.token_ids))
        for logger in loggers:
            logger.log_image("val/heat_maps", of_one_size(strips), step=step, caption=texts)


def of_one_size(pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """Each on white paper that all of them fit on, for W&B shows the pictures of a step in one size."""
    size = max(picture.width for picture in pictures), max(picture.height for picture in pictures)
    sheets = [Image.new("RGB", size, "white") for _ in pictures]
    for sheet, picture in zip(sheets, pictures, strict=True):
        sheet.paste(picture, (0, 0))
    return sheets


@contextmanager
def wandb_runs(loggers: list[Logger], run_dir: Path) -> Iterator[None]:
    """Keeps all that W&B writes in `run_dir`; at the end, however it comes, ends the runs and says how to see them.

    An ended run lets the next job of a multirun begin its own.
    """
    is_first = not getattr(rank_zero_only, "rank", 0)
    runs = [logger for logger in loggers if is_first and isinstance(logger, WandbLogger)]
    staging = "WANDB_DATA_DIR"  # tables wait there for their upload; W&B's default is in the home folder
    ours = staging not in os.environ
    if ours and runs:
        os.environ[staging] = str(run_dir.resolve() / "wandb")
    failed = True
    try:
        for logger in runs:
            _begin(logger)
        yield
        failed = False
    finally:
        for logger in runs:
            words = _how_to_browse(logger, run_dir)
            logger.experiment.finish(exit_code=int(failed))
            log.info("%s", words)
        if ours:
            os.environ.pop(staging, None)


def _begin(logger: WandbLogger) -> None:
    """Open its run: offline where the server does not take it, such as for a wrong API key."""
    import wandb

    try:
        _ = logger.experiment
    except wandb.Error as error:
        reason = str(error).splitlines()[0]
        log.warning("W&B's server does not take this run (%s); it is logged offline", reason)
        wandb.teardown()  # which keeps the run's id for the one that failed
        log_offline(logger)


def _how_to_browse(logger: WandbLogger, run_dir: Path) -> str:
    run = logger.experiment
    if not run.offline:
        return f"W&B run: {run.url}"
    own = Path(sys.executable).with_name("wandb")
    command = "wandb" if shutil.which("wandb") == str(own) else readable(own)
    return (
        "W&B logged offline\n"
        f"  browse it in the terminal: {command} leet {readable(Path(run.dir).parent)}\n"
        f"  upload it:                 {command} sync {readable(run_dir)}/wandb/offline-run-*"
    )
