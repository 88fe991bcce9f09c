"""Self-critical training follows the gradient of the expected reward, and the reward is CIDEr-D with EOS as a word."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from support import CAPTIONS, encoded_rows, small_captioner, trained_tokenizer

from captioning.data.batch import IGNORE, Row, pack
from captioning.errors import UserError
from captioning.evaluation.bleu import NgramCounts
from captioning.evaluation.cider import CiderD
from captioning.evaluation.tokenizer import tokenize
from captioning.model.generation import Caption
from captioning.training.optimizers import adamw
from captioning.training.scst import (
    EOS,
    CiderReward,
    SelfCriticalModule,
    advantages,
    packed_samples,
)

REFERENCES = {"dog": CAPTIONS[:2], "woman": CAPTIONS[3:5], "cat": CAPTIONS[6:8]}
BOS_EOS = (0, 0)


@pytest.fixture(scope="module")
def reward():
    return CiderReward(REFERENCES)


def test_the_reward_is_cider_d_with_the_end_as_a_word(reward):
    def counted(caption: str) -> NgramCounts:
        return NgramCounts([*tokenize(caption).split(), EOS])

    targets = {picture: list(map(counted, captions)) for picture, captions in REFERENCES.items()}
    cider = CiderD.from_references(targets.values())
    caption = "A dog runs across the street."
    expected = cider.score(counted(caption), cider.prepare(targets["dog"]))
    assert reward("dog", caption, ended=True) == pytest.approx(expected) and expected > 0


def test_a_sentence_that_breaks_off_is_worth_less_than_one_that_ends(reward):
    whole = CAPTIONS[0]
    assert reward("dog", whole, ended=True) > reward("dog", whole, ended=False)
    assert reward("dog", whole, ended=True) > reward("dog", whole + " with a", ended=False)


def test_one_picture_is_refused():
    with pytest.raises(UserError, match="at least 2 training pictures"):
        CiderReward({"dog": CAPTIONS[:2]})


def test_the_baseline_of_a_sample_is_the_mean_of_the_others():
    rewards = torch.rand(4, 5)
    expected = torch.stack([rewards[:, k] - (rewards.sum(1) - rewards[:, k]) / 4 for k in range(5)], 1)
    torch.testing.assert_close(advantages(rewards), expected)


def test_samples_are_packed_as_captions_are():
    """Their loss is that of the same captions packed by `pack`, wherever padding lies."""
    captioner = small_captioner(60)
    rows = encoded_rows(trained_tokenizer(), [CAPTIONS[:1], CAPTIONS[1:2]])
    ids = [[[5, 6, 7], [8], []], [[9, 9, 9, 9], [3, 4], [2, 2, 2]]]
    samples = [[Caption(one, 0.0) for one in of_picture] for of_picture in ids]
    batch = pack(rows)
    drawn = packed_samples(samples, batch, max_new_tokens=4, end_of_text=BOS_EOS)
    assert drawn.input_ids.shape == (2, 3 * 4)
    with torch.no_grad():
        found = captioner.loss_from(captioner.attended(batch), drawn)
        whole = [[0, *one, 0] if len(one) < 4 else [0, *one] for of_picture in ids for one in of_picture]
        alone = [
            captioner.loss(pack([Row(0, rows[number // 3].pixels, [torch.tensor(one).numpy()])]))
            for number, one in enumerate(whole)
        ]
    assert found.tokens == sum(nats.tokens for nats in alone) == 4 + 2 + 1 + 4 + 3 + 4
    torch.testing.assert_close(found.nats, sum(nats.nats for nats in alone), rtol=1e-5, atol=1e-5)


def test_a_sample_cut_at_the_limit_has_no_end_to_learn():
    batch = pack(encoded_rows(trained_tokenizer(), [CAPTIONS[:1]]))
    drawn = packed_samples([[Caption([5, 6], 0.0), Caption([7], 0.0)]], batch, max_new_tokens=2, end_of_text=BOS_EOS)
    assert drawn.labels.tolist() == [[5, 6, 7, 0]]
    drawn = packed_samples([[Caption([5, 6], 0.0), Caption([7], 0.0)]], batch, max_new_tokens=9, end_of_text=BOS_EOS)
    assert drawn.labels.tolist() == [[5, 6, 0, 7, 0, IGNORE]]


def module_with(reward, **changed):
    tokenizer = trained_tokenizer()
    settings = {"samples": 4, "max_new_tokens": 6, "seed": 1} | changed
    captioner = small_captioner(tokenizer.vocab_size, spread=0.1)
    captioner.set_trainable(["cross_attention", "decoder", "encoder"])
    optimizer = partial(adamw, weight_decay=0.0, betas=(0.9, 0.999))
    module = SelfCriticalModule(
        captioner, reward=reward, decode=str, optimizer=optimizer, checkpoint_extras={}, **settings
    )
    module._trainer = SimpleNamespace(current_epoch=0, world_size=1, global_rank=0)
    return module, pack(encoded_rows(tokenizer, [CAPTIONS[:1], CAPTIONS[1:2], CAPTIONS[2:3]]))


def test_training_raises_what_is_rewarded():
    """Rewarded is how often a token comes up; a few steps make it far more frequent."""
    module, batch = module_with(lambda picture, caption, ended: float(caption.count("7,")), samples=16)
    told = []
    module.on_train_loss.append(lambda total, count: told.append(float(total / count)))
    optimizer = torch.optim.Adam(module.parameters(), 3e-3)
    for step in range(40):
        optimizer.zero_grad()
        module.training_step(batch, step).backward()
        optimizer.step()
    assert sum(told[-5:]) / 5 > sum(told[:5]) / 5 + 1.0, told


def test_samples_that_are_all_as_good_teach_nothing():
    module, batch = module_with(lambda picture, caption, ended: 3.0)
    module.training_step(batch, 0).backward()
    assert max(p.grad.abs().max() for p in module.parameters()) < 1e-7


def test_each_picture_is_encoded_once_a_step_and_its_gradient_taken():
    module, batch = module_with(lambda picture, caption, ended: float(len(caption)))
    encoded = []
    module.captioner.network.encoder.register_forward_hook(lambda _, args, out: encoded.append(1))
    module.training_step(batch, 0).backward()
    assert encoded == [1]
    assert all(p.grad is not None for p in module.captioner.network.encoder.parameters())


def test_samples_are_those_of_the_step():
    first, again, later = (module_with(lambda *_: 0.0) for _ in range(3))
    drawn = []
    for (module, batch), step in ((first, 0), (again, 0), (later, 1)):
        module._reward = lambda picture, caption, ended: drawn[-1].append(caption) or 0.0
        drawn.append([])
        module.training_step(batch, step)
    assert drawn[0] == drawn[1] != drawn[2]
