"""Self-critical training: after cross-entropy, the score that captions are compared by is optimised itself.

The gradient is REINFORCE's (Rennie et al. 2017, https://arxiv.org/abs/1612.00563) on CIDEr-D, with the mean of a
picture's other samples as the baseline (Luo 2020, https://arxiv.org/abs/2003.09971). EOS is a token of candidates and
references when they are scored: without it, sentences that break off are rewarded
(https://arxiv.org/abs/2305.12254).

Letters: B pictures, K samples of a picture, T tokens of the longest sample, EOS included.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from captioning.data.batch import IGNORE, CaptionBatch
from captioning.data.records import ImageId
from captioning.errors import UserError
from captioning.evaluation.bleu import NgramCounts
from captioning.evaluation.cider import CiderD, PreparedReferences
from captioning.evaluation.tokenizer import tokenize
from captioning.model.captioner import ImageCaptioner
from captioning.model.generation import Caption, Rollouts, generate_from
from captioning.training.module import CaptioningModule, in_eval_mode

EOS = "<eos>"  # no word: the tokenizer of scores never gives it
PREPARED_PICTURES = 20_000  # whose counted references are kept; a picture's take about 10 kB


class CiderReward:
    """CIDEr-D of captions against a picture's training captions, which the document frequencies are counted over too.

    Args:
        references: the captions of every training picture.
    """

    def __init__(self, references: Mapping[ImageId, Sequence[str]]):
        if len(references) < 2:
            raise UserError(
                "self-critical training needs at least 2 training pictures, for a word of all captions scores nothing"
            )
        self._references = references
        self._cider = CiderD.from_references(map(self._targets, references))
        self._prepared = functools.lru_cache(PREPARED_PICTURES)(self._prepare)

    def __call__(self, picture: ImageId, caption: str, ended: bool) -> float:
        """The score, from 0 to 10, of a caption that came to an end by itself or was cut."""
        return self._cider.score(_words(caption, ended), self._prepared(picture))

    def _targets(self, picture: ImageId) -> list[NgramCounts]:
        return [_words(caption, ended=True) for caption in self._references[picture]]

    def _prepare(self, picture: ImageId) -> PreparedReferences:
        return self._cider.prepare(self._targets(picture))


def _words(caption: str, ended: bool) -> NgramCounts:
    return NgramCounts(tokenize(caption).split() + [EOS] * ended)


class SelfCriticalModule(CaptioningModule):
    """Trains on the reward of the model's own captions; validation stays that of cross-entropy.

    A training picture is encoded once: its samples are drawn from that encoding, and so is their gradient taken.

    Args:
        captioner: the model, trained with cross-entropy before.
        reward: (image id, caption, whether it ended) -> what is to become large.
        decode: token ids to text.
        samples: captions drawn of each picture, at least 2.
        max_new_tokens: of a sample, EOS included.
        seed: of the samples, with the step.
        common: `CaptioningModule`'s others.
    """

    def __init__(
        self,
        captioner: ImageCaptioner,
        *,
        reward: Callable[[ImageId, str, bool], float],
        decode: Callable[[Sequence[int]], str],
        samples: int,
        max_new_tokens: int,
        seed: int,
        **common: Any,
    ):
        super().__init__(captioner, **common)
        self._reward, self._decode = reward, decode
        self._samples, self._max_new_tokens, self._seed = samples, max_new_tokens, seed

    def training_step(self, batch: CaptionBatch, batch_index: int) -> Tensor:
        """The batch's summed loss, whose gradient raises the reward, in units of `NOMINAL_TOKENS` tokens."""
        attended = self.captioner.attended(batch)
        with in_eval_mode(self.captioner):
            rollouts = Rollouts(self._max_new_tokens, self._samples, self._seed_of(batch_index))
            samples = [one.alternatives for one in generate_from(self.captioner, attended.detach(), rollouts)]
        rewards = self._rewards(batch, samples).to(self.device)  # (B, K)
        drawn = packed_samples(samples, batch, self._max_new_tokens, self.captioner.end_of_text).to(self.device)
        weights = advantages(rewards).gather(1, (drawn.caption_index - 1).clamp(min=0))  # (B, K * T)
        nats, tokens = self.captioner.loss_from(attended, drawn, weights)
        for add in self.on_train_loss:
            add(rewards.sum(), torch.tensor(rewards.numel(), device=self.device))
        return self.step_loss(nats, tokens)

    def training_metrics(self, total: float, count: float) -> dict[str, float]:
        """The mean reward of the samples, under its name in the loggers."""
        return {"train/reward": total / count if count else math.nan}

    def _rewards(self, batch: CaptionBatch, samples: Sequence[Sequence[Caption]]) -> Tensor:
        return torch.tensor(
            [
                [self._reward(picture, self._decode(one.token_ids), self._ended(one)) for one in of_picture]
                for picture, of_picture in zip(batch.image_ids, samples, strict=True)
            ]
        )

    def _ended(self, sample: Caption) -> bool:
        return len(sample.token_ids) < self._max_new_tokens

    def _seed_of(self, batch_index: int) -> int:
        """Of this epoch's batch of this rank, whatever was drawn before it."""
        place = (self.trainer.current_epoch * self.trainer.world_size + self.trainer.global_rank) << 32
        return (self._seed * 1_000_003 + place + batch_index) % 2**63


def advantages(rewards: Tensor) -> Tensor:
    """Each reward less the mean of the picture's others, (B, K).

    >>> advantages(torch.tensor([[1.0, 2.0, 6.0]]))
    tensor([[-3.0000, -1.5000,  4.5000]])
    """
    samples = rewards.shape[1]
    return (rewards - rewards.mean(1, keepdim=True)) * samples / (samples - 1)


def packed_samples(
    samples: Sequence[Sequence[Caption]], batch: CaptionBatch, max_new_tokens: int, end_of_text: tuple[int, int]
) -> CaptionBatch:
    """The samples of the batch's pictures as rows to compute the loss of, each sample in T places of its row.

    Args:
        samples: K of each picture.
        batch: whose pictures they are.
        max_new_tokens: so many tokens have no EOS.
        end_of_text: the ids of BOS and EOS.
    """
    bos, eos = end_of_text
    longest = min(max_new_tokens, 1 + max(len(one.token_ids) for of_picture in samples for one in of_picture))
    tokens = torch.tensor(
        [[[*one.token_ids, eos, *([IGNORE] * longest)][:longest] for one in of_picture] for of_picture in samples]
    )  # (B, K, T): IGNORE behind EOS
    there = tokens != IGNORE
    inputs = torch.full_like(tokens, bos)
    inputs[..., 1:] = tokens[..., :-1].where(there[..., :-1], bos)
    numbers = torch.arange(1, tokens.shape[1] + 1)[:, None].expand_as(tokens)  # of a picture's samples, from 1
    return CaptionBatch(
        pixel_values=None,
        input_ids=inputs.flatten(1),
        position_ids=torch.arange(tokens.shape[2]).expand_as(tokens).flatten(1),
        caption_index=numbers.where(there, 0).flatten(1),
        labels=tokens.flatten(1),
        labelled=there.flatten().nonzero().squeeze(1),
        image_ids=batch.image_ids,
        caption_count=tokens.shape[0] * tokens.shape[1],
    )
