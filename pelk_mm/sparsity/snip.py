"""SNIP scores from one batch of a runner's training data.

Lee et al., "SNIP: Single-shot network pruning based on connection sensitivity", ICLR
2019.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
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

    Model, gradients, running statistics, data order and random numbers are
    afterwards as if this had not been called. Every process has to call it, since
    layers and losses may communicate.

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
    model = unwrap(runner.model)
    with preserve_random_state(), _preserve_training_state(model):
        set_random_seed(seed)
        batch = _draw_batch(runner)
        model.train()
        # The class's: mmengine's `compile` puts a compiled one in the model's place.
        type(model).train_step(model, batch, optim_wrapper=_BackwardOnly())
        with torch.no_grad():
            return {
                name: torch.zeros_like(param)
                if param.grad is None
                else (param * param.grad).abs()
                for name, param in params.items()
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
        """Compute the gradients.

        Raises:
            ValueError: If the loss is not finite.
        """
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


@contextmanager
def _preserve_training_state(model: nn.Module) -> Iterator[None]:
    """Restore the values of buffers, gradients and training modes afterwards."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    grads = [(param, param.grad) for param in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    for param, _ in grads:
        param.grad = None
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        for param, grad in grads:
            param.grad = grad
        for module, training in modes:
            module.training = training
