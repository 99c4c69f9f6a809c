"""Stop a training whose loss is not a finite number any more."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import HOOKS
from mmengine.runner import Runner, find_latest_checkpoint
from torch import Tensor, nn
from torch.optim import Optimizer

from pelk_mm.config_types import entry

from .checkpoint_hook import SafeCheckpointHook
from .nonfinite import (
    BAD_IMAGE,
    all_finite,
    bad_names,
    describe_gradients,
    describe_inputs,
    describe_state,
    first_bad_layer,
    tensors_in,
)
from .random_state import IterationSeedHook, preserve_random_state


class NotFiniteError(ArithmeticError):
    """A loss, gradient or weight that is infinite or no number."""


def _optim_wrappers(runner: Runner) -> list[OptimWrapper]:
    wrapper = runner.optim_wrapper
    if isinstance(wrapper, OptimWrapperDict):
        return list(wrapper.optim_wrappers.values())
    return [wrapper]


def _last_checkpoint(runner: Runner) -> str | None:
    """Path of the last checkpoint that has been written completely."""
    for hook in runner.hooks:
        if isinstance(hook, SafeCheckpointHook):
            return hook.complete
    if 'last_ckpt' not in runner.message_hub.runtime_info:
        return None
    # mmengine notes it there before it writes it, and in its file afterwards.
    return find_latest_checkpoint(runner.work_dir)


def _losses(outputs: Any) -> dict[str, Tensor]:
    """The entries that mmengine adds up to the loss: those named so."""
    if not isinstance(outputs, Mapping):
        return {}
    return {
        name: torch.stack([part.detach().float().mean() for part in parts]).sum()
        for name, value in outputs.items()
        if 'loss' in name and (parts := list(tensors_in(value)))
    }


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Stop the training at a NaN or infinite loss, and say where it comes from.

    The loss and the gradients are looked at after the backward pass, before the
    optimizer changes a weight. The message names the iteration, the losses, the first
    parameter that is not finite or else the image, or else the first layer whose output
    is not, found by running the batch once more; the learning rate; and the last
    checkpoint, which stays: nothing is saved any more. A checkpoint with weights that
    are not finite is never saved.

    Looking costs one wait for the GPU per step, at a point where all of its work but
    the optimizer's is queued; mmengine itself waits at the end of every iteration, to
    log the losses.

    With a loss scaler (``AmpOptimWrapper``) an infinite gradient is normal: the scaler
    skips the step and lowers its scale. There only the loss counts. Where
    ``torch.compile`` compiles the training step, the losses are looked at when it
    returns, after the optimizer's step.

    Args:
        enabled: Whether to look at all.

    Raises:
        NotFiniteError: In the iteration where it happens.
    """

    # Before anything that makes use of the losses.
    priority = 'VERY_HIGH'

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self._handles: list[Any] = []
        self._call: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
        self._outputs: list[Any] = []
        self._checked = False

    def before_train(self, runner: Runner) -> None:
        """Have the model and the optimizers call this hook."""
        self.after_train(runner)
        if not self.enabled:
            return
        model = self._model(runner)
        self._handles.append(model.register_forward_hook(self._note, with_kwargs=True))
        for wrapper in _optim_wrappers(runner):
            # DeepSpeed's engine in the place of an optimizer calls no hooks.
            if isinstance(wrapper.optimizer, Optimizer):
                self._handles.append(
                    wrapper.optimizer.register_step_pre_hook(
                        lambda optimizer, *_: self._check_step(runner, optimizer)
                    )
                )

    def after_train(self, runner: Runner) -> None:
        """Leave the model and the optimizers alone again."""
        while self._handles:
            self._handles.pop().remove()
        self._forget()

    def _forget(self) -> None:
        self._call, self._outputs, self._checked = ((), {}), [], False

    def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Forget the iteration before."""
        self._forget()

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Any = None,
    ) -> None:
        """Check the losses of an iteration without an optimizer step."""
        if self.enabled and not self._checked:
            self._check_losses(runner, _losses(outputs))
        self._forget()

    def before_save_checkpoint(
        self, runner: Runner, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse to save weights that are not finite."""
        if not self.enabled:
            return
        model = self._model(runner)
        names = {name for name, _ in model.named_parameters()} | {
            name
            for name, _ in model.named_buffers()
            if name.endswith(('running_mean', 'running_var'))
        }
        weights = checkpoint.get('state_dict', {})
        bad = bad_names((name, weights.get(name)) for name in weights if name in names)
        if bad:
            raise NotFiniteError(
                f'{bad[0]} is not finite after iteration {runner.iter + 1}, one of '
                f'{len(bad)} such weights and statistics; they are not saved. '
                f'{self._remedy(runner)}'
            )

    @staticmethod
    def _model(runner: Runner) -> Any:
        model = runner.model
        return model.module if is_model_wrapper(model) else model

    def _note(self, module: nn.Module, args: Any, kwargs: Any, outputs: Any) -> None:
        if torch.compiler.is_compiling() or not module.training:
            return
        if kwargs.get('mode') == 'loss' and torch.is_grad_enabled():
            self._call = (args, kwargs)
            self._outputs.append(outputs)

    def _check_step(self, runner: Runner, optimizer: Optimizer) -> None:
        """Check what a step is about to be made with."""
        if torch.compiler.is_compiling():
            return
        losses = [_losses(outputs) for outputs in self._outputs]
        params = [p for group in optimizer.param_groups for p in group['params']]
        grads = [p.grad for p in params if p.grad is not None]
        # A fused optimizer is called with what the loss scaler is going to skip.
        scaled = getattr(optimizer, 'found_inf', None) is not None
        values = [value for part in losses for value in part.values()]
        self._checked = True
        if all_finite(values if scaled else [*values, *grads]):
            return
        for part in losses:
            self._check_losses(runner, part)
        model = self._model(runner)
        self._stop(runner, describe_gradients(model) or 'a gradient is not finite')

    def _check_losses(self, runner: Runner, losses: Mapping[str, Tensor]) -> None:
        if all_finite(losses.values()):
            return
        if len(losses) > 1:  # mmengine's outputs have the sum as well
            losses = {name: v for name, v in losses.items() if name != 'loss'}
        numbers = {name: value.item() for name, value in losses.items()}
        bad = set(bad_names(losses.items()))
        stated = ', '.join(f'{n} is {v}' for n, v in numbers.items() if n in bad)
        others = ', '.join(f'{n} {v:.4g}' for n, v in numbers.items() if n not in bad)
        self._stop(runner, stated + (f' ({others})' if others else ''))

    def _stop(self, runner: Runner, what: str) -> None:
        cause = self._find_cause(runner)
        if cause.startswith(BAD_IMAGE):
            last = _last_checkpoint(runner)
            then = f'resume from {last} with --resume' if last else 'start again'
            raise NotFiniteError(
                f'iteration {runner.iter + 1}: {what}; {cause}. Replace it or leave it '
                f'out, or look for the transform that made it so, and {then}'
            )
        raise NotFiniteError(
            f'iteration {runner.iter + 1}: {what}; {cause}. {self._remedy(runner)}'
        )

    def _find_cause(self, runner: Runner) -> str:
        """Look in the weights, in the batch, and then in the layers."""
        model = self._model(runner)
        args, kwargs = self._call
        cause = describe_state(model) or describe_inputs(args, kwargs)
        if cause is None and (args or kwargs):
            with preserve_random_state(), self._context(runner):
                for hook in runner.hooks:
                    if isinstance(hook, IterationSeedHook):
                        hook.before_train_iter(runner)  # the same dropout
                cause = first_bad_layer(model, args, kwargs)
        if cause is None and get_world_size() > 1:
            return (
                'all parameters and the outputs of all layers are finite in this '
                'process; another one says what is not'
            )
        return cause or (
            'all parameters and the outputs of all layers are finite, so it arises in '
            'the computation of the losses or in the backward pass'
        )

    @staticmethod
    def _context(runner: Runner) -> AbstractContextManager[None]:
        """Mixed precision, if the training has it."""
        wrapper = runner.optim_wrapper
        if isinstance(wrapper, OptimWrapper):
            return wrapper.optim_context(runner.model)
        return nullcontext()

    @staticmethod
    def _remedies(runner: Runner) -> Iterator[str]:
        last = _last_checkpoint(runner)
        wrapper = runner.optim_wrapper
        # A dict of wrappers has none of its own.
        clips = getattr(wrapper, 'clip_grad_kwargs', True)
        if last is not None and not clips:
            yield (
                f'resume from {last} with clipped gradients: --resume --cfg-options '
                'optim_wrapper.clip_grad.max_norm=1'
            )
        options = f'load_from={last} ' if last is not None else ''
        rate = entry(runner.cfg, 'optim_wrapper', 'optimizer', 'lr')
        if rate is not None:
            options += f'optim_wrapper.optimizer.lr={rate / 2:.3g}'
            start = 'start from its weights' if last is not None else 'start again'
            yield f'{start} with a lower learning rate: --cfg-options {options}'

    def _remedy(self, runner: Runner) -> str:
        rates = {
            group['lr']
            for wrapper in _optim_wrappers(runner)
            for group in wrapper.optimizer.param_groups
        }
        span = ' to '.join(f'{r:.3g}' for r in sorted({min(rates), max(rates)}))
        text = f'The learning rate is {span}'
        if _last_checkpoint(runner) is None:
            text += '; no checkpoint had been saved'
        remedies = ', or '.join(self._remedies(runner))
        return f'{text}. {remedies[:1].upper()}{remedies[1:]}'.rstrip('. ')
