"""SNIP scores from one batch of a runner's training data.

Lee et al., "SNIP: Single-shot network pruning based on connection sensitivity", ICLR
2019.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from typing import Any

import torch
from mmengine.model import BaseModel, is_model_wrapper
from mmengine.runner import Runner, set_random_seed
from torch import Tensor, nn

from pelk_mm.engine.random_state import preserve_random_state

from .batch import draw_batch

#: What torch says where a normalization layer has one value to take statistics of.
TOO_FEW_VALUES = re.compile(r'Expected more than 1 (value|spatial element)')


def unwrap(model: Any) -> BaseModel:
    """The segmenter or detector inside a distributed wrapper, if it is in one."""
    return model.module if is_model_wrapper(model) else model


class NoScoresError(ValueError):
    """The batch says nothing about the weights; the text is the reason."""


def snip_scores(
    runner: Runner, params: Mapping[str, nn.Parameter], seed: int
) -> dict[str, Tensor]:
    """Connection sensitivity |weight * gradient| of the model's own training loss.

    It works on a copy of the model, and draws neither from the sampler of the data nor
    from the generators of the run. Every process has to call it, since layers and
    losses may communicate.

    Args:
        runner: A runner about to train.
        params: The weights to score, by name.
        seed: Chooses the batch and seeds its augmentation and the model's dropout,
            in [0, 2**32).

    Returns:
        Scores of the weights' shapes.

    Raises:
        NoScoresError: If the loss or a score is not finite, or every score is 0.
        ValueError: If no batch can be drawn, or normalization layers refuse it.
    """
    model = deepcopy(unwrap(runner.model)).train()
    model.zero_grad()
    backward = _BackwardOnly()
    with preserve_random_state():
        set_random_seed(seed)
        batch = draw_batch(runner, seed)
        try:
            # The class's: mmengine's `compile` puts a compiled one in the model's
            # place.
            type(model).train_step(model, batch, backward)
        except ValueError as error:
            if not TOO_FEW_VALUES.search(str(error)):
                raise
            raise ValueError(
                'a normalization layer refuses the batch for SNIP, and would refuse '
                f'the same in the training, with sparsity or without: "{error}"; give '
                'each process 2 or more images (train_dataloader.batch_size; of a '
                'smaller data set InfiniteSampler repeats images), larger images, or '
                'a norm_cfg of one image, as GN'
            ) from error
    with torch.no_grad():
        scores = {
            name: torch.zeros_like(param)
            if param.grad is None
            else (param * param.grad).abs()
            for name, param in model.named_parameters()
            if name in params
        }
    _require_scores(backward.losses, scores)
    return scores


def _require_scores(losses: Sequence[Tensor], scores: Mapping[str, Tensor]) -> None:
    for loss in losses:
        if not torch.isfinite(loss):
            raise NoScoresError(f'the loss of its batch is {loss.item()}')
    if not all(torch.isfinite(score).all() for score in scores.values()):
        raise NoScoresError('gradients of its batch are not finite')
    if not any(score.any() for score in scores.values()):
        raise NoScoresError(
            'no weight has any influence on the loss of its batch (all labels may be '
            'ignored)'
        )


class _BackwardOnly:
    """Reduces a model's ``train_step`` to its forward and backward pass.

    It takes the place of mmengine's ``OptimWrapper``, and of each in an
    ``OptimWrapperDict``.
    """

    def __init__(self) -> None:
        self.losses: list[Tensor] = []

    def __getitem__(self, name: str) -> '_BackwardOnly':
        return self

    def optim_context(self, model: nn.Module) -> AbstractContextManager[None]:
        """No autocast: a score needs no speed, and unscaled float16 underflows."""
        return nullcontext()

    def update_params(self, loss: Tensor) -> None:
        """Compute the gradients.

        Also of a loss that is not finite: the layers of other processes may wait for
        this one's part of them.
        """
        self.losses.append(loss.detach())
        if loss.requires_grad:
            # Not autograd.grad: checkpointing in its reentrant form refuses that.
            loss.backward()
