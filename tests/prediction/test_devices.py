"""Where a prediction runs, in what precision, and with which linear layers."""

import pytest
import torch
from support import small_captioner

from captioning.errors import UserError
from captioning.model.cpu import Int8Linear, PackedLinear
from captioning.prediction.devices import autocast, placed

CPU = torch.device("cpu")


@pytest.mark.parametrize(("precision", "layer"), [(32, PackedLinear), ("int8", Int8Linear), ("bf16", torch.nn.Linear)])
def test_on_a_cpu_the_precision_decides_the_linear_layers(precision, layer):
    captioner = placed(small_captioner(40), CPU, precision)
    assert isinstance(captioner.network.decoder.lm_head, layer)


def test_another_device_gets_stock_layers():
    captioner = placed(small_captioner(40), torch.device("meta"), 32)
    assert isinstance(captioner.network.decoder.lm_head, torch.nn.Linear)


def test_int8_on_a_gpu_is_refused():
    with pytest.raises(
        UserError, match=r"precision=int8 is for device=cpu alone; on device=cuda:0 take precision=bf16"
    ):
        autocast(torch.device("cuda:0"), "int8")


def test_int8_without_onednn_is_refused(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(UserError, match="precision=int8 needs oneDNN, which this build of torch lacks"):
        autocast(CPU, "int8")
