"""A GPU's training step, as far as a CPU can show it: where the host would wait, what is cast, what is compiled."""

from collections import Counter
from contextlib import ExitStack
from functools import partial
from unittest import mock

import lightning as L
import pytest
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import SingleDeviceStrategy
from small_runs import composed
from support import CAPTIONS, encoded_rows, small_captioner, trained_tokenizer
from torch import nn
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from captioning.config import GROUPS, StageConfig
from captioning.data.batch import pack
from captioning.training.callbacks import AddressedDropout
from captioning.training.module import CaptioningModule
from captioning.training.optimizers import adamw
from captioning.training.reports import MetricRows
from captioning.training.run import train
from captioning.training.stages import ApplyStages, StageSchedule

GPU = torch.device("cuda:0")


class Done(Exception):
    """Enough steps."""


class Audit(TorchDispatchMode):
    """Notes what a GPU is asked: tensors have no values here, only shapes, types and devices.

    What needs a value, `item` or `nonzero`, fails by itself.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.copied: list[tuple] = []  # to or from the GPU: shape, and types before and after
        self.casts: Counter[int] = Counter()  # to bfloat16, by the tensor that is cast
        self.widened: list[torch.Size] = []  # shapes of what bfloat16 became float32 of
        self.kept: list[torch.Tensor] = []  # so that no id comes twice

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        name = str(func)
        if name.startswith(("aten._to_copy", "aten.copy_")):
            target, source = (made, args[0]) if "_to_copy" in name else (args[0], args[1])
            waits = not kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
            if target.device.type != source.device.type:
                self.copied.append((source.shape, source.dtype, target.dtype))
            if target.device.type != source.device.type and waits:
                self.waits.append(f"{name} of {tuple(source.shape)} from {source.device} to {target.device}")
            if target.dtype == torch.float32 and source.dtype == torch.bfloat16:
                self.widened.append(source.shape)
            if target.dtype == torch.bfloat16 and source.dtype == torch.float32:
                self.casts[id(source)] += 1
                self.kept.append(source)
        return made


class Strategy(SingleDeviceStrategy):
    """On a GPU that is not there, from the first batch on."""

    stack = None  # entered at the first batch

    @property
    def root_device(self):
        return GPU if self.stack else torch.device("cpu")

    @root_device.setter
    def root_device(self, device):
        pass

    def model_to_device(self):
        self.lightning_module._device = GPU

    def teardown(self):
        pass


class Accelerator(CPUAccelerator):
    def setup_device(self, device):
        pass


class Module(CaptioningModule):
    """Its backward pass gives gradients of shapes alone: autograd would look for the GPU's driver."""

    def backward(self, loss):
        assert loss.requires_grad
        for parameter in self.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.empty_like(parameter)


class Stop(L.Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 2:
            raise Done


def on_a_gpu(captioner):
    """Its tensors, without values, on a GPU; what is shared stays so."""
    moved = {}
    for part in captioner.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if id(tensor) not in moved and tensor is not None:
                    there = torch.empty(tensor.shape, dtype=tensor.dtype, device=GPU)
                    moved[id(tensor)] = (nn.Parameter(there) if isinstance(tensor, nn.Parameter) else there), tensor
                if tensor is not None:
                    tensors[name] = moved[id(tensor)][0]
    return captioner


def stage_of(groups):
    keys = {"warmup_steps": 0, "decay": "none", "best_by": "val/perplexity", "self_critical": None}
    phases = [{"from_epoch": 0, "train": list(groups)}]
    return StageConfig(phases=phases, learning_rates=dict.fromkeys(GROUPS, 1e-3), **keys)


def audited(groups, tmp_path, cached_as=None):
    """Two steps of a `Trainer` in bf16, of which the second counts; of cached encodings if these have a type."""
    tokenizer, audit, fake = trained_tokenizer(), Audit(), FakeTensorMode(allow_non_fake_inputs=True)
    rows, captioner = encoded_rows(tokenizer, [CAPTIONS[:3], CAPTIONS[2:4]]), small_captioner(400)
    if cached_as is not None:
        encoded = torch.zeros(captioner.encoder_shape(), dtype=cached_as)
        rows = [row._replace(pixels=None, encoder_hidden_states=encoded) for row in rows]
    batch = pack(rows)
    with fake:
        module = Module(
            on_a_gpu(captioner),
            optimizer=partial(adamw, weight_decay=0.01, betas=(0.9, 0.999)),
            checkpoint_extras={},
        )
        batch = batch._with_tensors(fake.from_tensor)
    with ExitStack() as stack, pytest.raises(Done):
        stack.enter_context(mock.patch.object(torch.cuda, "is_bf16_supported", lambda *_, **__: True))
        there = mock.patch("torch.amp.autocast_mode.torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
        stack.enter_context(there)
        strategy = Strategy(GPU, accelerator=Accelerator(), precision_plugin=MixedPrecision("bf16-mixed", "cuda"))

        class Batches:
            def __iter__(self):
                strategy.stack = stack
                stack.enter_context(fake)
                for number in range(6):
                    if number == 1:
                        stack.enter_context(audit)
                    yield batch

            def __len__(self):
                return 6

        dropout = AddressedDropout(lambda *place: 0)
        trainer = L.Trainer(
            strategy=strategy,
            max_epochs=1,
            limit_val_batches=0,
            callbacks=[ApplyStages(StageSchedule(stage_of(groups))), dropout, MetricRows(), Stop()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        trainer.fit(module.train(), Batches())
    return audit


SLOW = pytest.mark.slow


@pytest.mark.parametrize("groups", [pytest.param(GROUPS[:1], marks=SLOW), pytest.param(GROUPS[:2], marks=SLOW), GROUPS])
def test_in_a_bf16_step_the_host_never_waits_and_what_is_multiplied_is_cast_once(groups, tmp_path):
    audit = audited(groups, tmp_path)
    assert not audit.waits
    assert len(audit.casts) > 20, "norms, the picture, weights"
    assert max(audit.casts.values()) == 1


def test_cached_encodings_in_bf16_reach_a_gpus_products_as_they_are(tmp_path):
    audit = audited(GROUPS[:1], tmp_path, cached_as=torch.bfloat16)
    assert not audit.waits
    cached = torch.Size([2, *small_captioner(400).encoder_shape()])
    assert (cached, torch.bfloat16, torch.bfloat16) in audit.copied
    assert cached not in audit.widened


@pytest.mark.slow
def test_a_run_of_three_stages_and_its_validations_compiles_eight_graphs_and_falls_back_nowhere(tmp_path):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compile_one = nn.Module.compile
    with (
        mock.patch.object(nn.Module, "compile", lambda layer: compile_one(layer, backend=backend)),
        torch._dynamo.config.patch(fail_on_recompile_limit_hit=True),
    ):
        counters.clear()
        train(composed(tmp_path, "model.compile=true", "model.decoder_layers=2", "model.encoder_layers=2"))
    # A ViT frozen and trained; of GPT-2 the first and the other layers, at one length and at any; then what trains.
    assert len(graphs) == 8
    assert not counters["graph_break"] and not counters["unimplemented"]
    assert counters["frames"]["total"] == counters["frames"]["ok"] == 8
