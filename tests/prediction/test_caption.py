"""From files to captioned pictures: what can be read is captioned, the rest is named; where, and in what precision."""

import pytest
import torch
from PIL import Image
from support import noise_pictures, small_captioner, trained_tokenizer

from captioning.data.batch import PictureFormat
from captioning.data.images import read_picture
from captioning.data.rows import TokenArrays
from captioning.errors import UserError
from captioning.model.cpu import Int8Linear, PackedLinear
from captioning.model.generation import Beam, Greedy, generate
from captioning.prediction.caption import Model, Work, autocast, caption, picture_loader, placed
from captioning.prediction.inputs import InputPictures, find_pictures
from captioning.prediction.outputs.gallery import thumbnail

CPU = torch.device("cpu")
TOKENIZER = trained_tokenizer()
SMALL = PictureFormat((8, 6))


def work(paths, **options) -> Work:
    pictures = InputPictures(paths)
    return Work(pictures, **{"decoding": Greedy(9), "precision": 32, "batch_size": 2, "num_workers": 0, **options})


@pytest.fixture(scope="module")
def model() -> Model:
    captioner = small_captioner(TOKENIZER.vocab_size, spread=0.4, end_of_text=TOKENIZER.eos_token_id)
    return Model(captioner, TOKENIZER, CPU)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_hold_what_can_be_read_and_name_the_rest(tmp_path, workers):
    for name, colour in (("0.png", "red"), ("2.png", "blue")):
        Image.new("RGB", (30, 20), colour).save(tmp_path / name)
    for name in ("1.png", "3.png", "5.png"):
        (tmp_path / name).touch()
    paths = [tmp_path / f"{number}.png" for number in (0, 1, 3, 4, 2, 5)]
    first, second, third = picture_loader(work(paths, num_workers=workers), SMALL, CPU)
    assert first[1].shape == (1, 3, 8, 6)
    assert first[1][0, :, 0, 0].tolist() == [255, 0, 0]
    assert [picture.error for picture in first[0]] == [None, "empty file"]
    assert second[1] is None and [picture.error for picture in second[0]] == ["empty file", "no such file"]
    assert third[1][0, :, 0, 0].tolist() == [0, 0, 255]
    places = [picture.place for pictures, _ in (first, second, third) for picture in pictures]
    assert places == list(range(6)), "in the order of the input"


def test_thumbnails_are_made_on_the_way_where_they_are_asked_for(tmp_path):
    Image.new("RGB", (30, 20), "red").save(tmp_path / "0.png")
    paths = [tmp_path / "0.png", tmp_path / "1.png"]
    for asked, expected in ((True, thumbnail(read_picture(paths[0]))), (False, None)):
        ((pictures, _),) = picture_loader(work(paths, thumbnails=asked), SMALL, CPU)
        assert [picture.thumbnail for picture in pictures] == [expected, None]


def test_the_awkward_folder_can_be_read_whole(shared_data):
    pictures = InputPictures(find_pictures(shared_data / "awkward-images"))
    assert len(pictures) == 21
    read = [picture for batch, _ in picture_loader(work(pictures.paths), SMALL, CPU) for picture in batch]
    refused = {picture.path.rpartition("/")[2] for picture in read if picture.error}
    assert refused == {"truncated.jpg", "header-only.jpg", "empty.jpg", "text.jpg", "noise.png", "bomb.png"}


def test_each_picture_comes_with_its_caption_as_text_or_with_its_reason(model, tmp_path):
    paths = noise_pictures(tmp_path, 3)
    beam = Beam(9, 3, length_penalty=1.0, early_stopping=True, no_repeat_ngram_size=0, min_new_tokens=0, n_best=2)
    paths.insert(1, tmp_path / "gone.png")
    done = [one for batch in caption(work(paths, decoding=beam), model) for one in batch.pictures]
    assert [one.place for one in done] == [0, 1, 2, 3] and [one.path for one in done] == list(map(str, paths))
    assert (done[1].caption, done[1].error) == (None, "no such file")
    pixels = torch.cat([batch for _, batch in picture_loader(work(paths), model.captioner.picture_format, CPU)])
    for one, made in zip((done[0], *done[2:]), generate(model.captioner, pixels, beam), strict=True):
        assert one.caption == TOKENIZER.decode(made.token_ids) and one.error is None
        assert one.log_probability == pytest.approx(made.log_probability, abs=1e-5)
        assert [text for text, _ in one.alternatives] == [TOKENIZER.decode(a.token_ids) for a in made.alternatives]


def test_heat_maps_are_drawn_over_the_photographs_that_were_chosen(model, tmp_path):
    paths = [tmp_path / "0.png", tmp_path / "1.png"]
    for path in paths:
        Image.new("RGB", (64, 32), "red").save(path)
    (batch,) = caption(work(paths, heat_maps={1}, layers=[0]), model)
    first, second = batch.pictures
    assert first.heat_map is None
    assert second.heat_map.height % (100 + 30) == 12, "panels half as high as wide"


@pytest.mark.parametrize("precision", [32, "bf16", "int8"])
def test_a_data_sets_captions_are_measured_in_the_precision_that_encoded_the_picture(tmp_path, precision):
    # Where the widths differ, the projection between them gives bfloat16, which the decoder's weights are not.
    captioner = small_captioner(TOKENIZER.vocab_size, end_of_text=TOKENIZER.eos_token_id, encoder_width=64)
    paths, own = noise_pictures(tmp_path, 2), [["a man", "a dog"], ["a cat sleeps"]]
    pictures = InputPictures(paths, [0, 1], own, TokenArrays.encode(own, TOKENIZER, 20, "val"))
    model = Model(placed(captioner, CPU, precision), TOKENIZER, CPU)
    (batch,) = caption(Work(pictures, Greedy(3), precision, batch_size=2, num_workers=0, heat_maps={1}), model)
    assert batch.tokens == sum(len(ids) - 1 for of_one in own for ids in TOKENIZER.encode(of_one))
    assert 0 < batch.nats / batch.tokens < 20
    assert [picture.references for picture in batch.pictures] == own
    assert batch.pictures[1].heat_map is not None


@pytest.mark.parametrize(("precision", "layer"), [(32, PackedLinear), ("int8", Int8Linear), ("bf16", torch.nn.Linear)])
def test_on_a_cpu_the_precision_decides_the_linear_layers(precision, layer):
    captioner = placed(small_captioner(40), CPU, precision)
    head = captioner.network.decoder.lm_head
    assert isinstance(head, layer)
    assert precision != "bf16" or head.weight.dtype is torch.bfloat16, "not cast anew for each batch"


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
