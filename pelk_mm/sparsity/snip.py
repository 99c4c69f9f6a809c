"""SNIP scores from one batch of a runner's training data.

Lee et al., "SNIP: Single-shot network pruning based on connection sensitivity", ICLR
2019.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from typing import Any

import torch
from mmengine.model import BaseModel, is_model_wrapper
from mmengine.runner import Runner, set_random_seed
from torch import Tensor, nn

from pelk_mm.engine.random_state import preserve_random_state


def unwrap(model: Any) -> BaseModel:
    """The segmenter or detector inside a distributed wrapper, if it is in one."""
    return model.module if is_model_wrapper(model) else model


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
        ValueError: If the loss is not finite.
    """
    model = deepcopy(unwrap(runner.model)).train()
    model.zero_grad()
    with preserve_random_state():
        set_random_seed(seed)
        # The class's: mmengine's `compile` puts a compiled one in the model's place.
        type(model).train_step(model, _draw_batch(runner), _BackwardOnly())
    with torch.no_grad():
        return {
            name: torch.zeros_like(param)
            if param.grad is None
            else (param * param.grad).abs()
            for name, param in model.named_parameters()
            if name in params
        }


class _BackwardOnly:
    """Reduces a model's ``train_step`` to its forward and backward pass.

    It takes the place of mmengine's ``OptimWrapper``, and of each in an
    ``OptimWrapperDict``.
    """

    def __getitem__(self, name: str) -> '_BackwardOnly':
        return self

    def optim_context(self, model: nn.Module) -> AbstractContextManager[None]:
        """No autocast: a score needs no speed, and unscaled float16 underflows."""
        return nullcontext()

    def update_params(self, loss: Tensor) -> None:
        """Compute the gradients."""
        if not torch.isfinite(loss):
            raise ValueError(
                f'the loss of the batch for SNIP is {loss.item()}; look at the data '
                "and the weights that were loaded, or set init='erk'"
            )
        # Not autograd.grad: checkpointing in its reentrant form refuses that.
        loss.backward()


def _draw_batch(runner: Runner) -> Any:
    """One batch of the training data, without its sampler.

    mmengine's infinite sampler is a stream: what is taken from it here the training
    would not see.
    """
    loader = runner.train_dataloader
    size = min(loader.batch_sampler.batch_size, len(loader.dataset))
    indices = torch.randperm(len(loader.dataset))[:size].tolist()
    return loader.collate_fn([loader.dataset[index] for index in indices])
