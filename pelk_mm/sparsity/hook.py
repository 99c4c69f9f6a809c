"""Dynamic sparsity for mmengine's Runner."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from types import NoneType
from typing import Any

import torch
from mmengine.dist import all_gather_object, broadcast, get_world_size
from mmengine.hooks import EMAHook, Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.optim import Optimizer

from pelk_mm.checkpoints.files import CheckpointError, first_line

from .growth import GROWTHS, prune_and_grow, prune_rate
from .initializers import (
    Rule,
    allocate,
    draw_masks,
    erk,
    masks_from_zeros,
    share_of_zeros,
    snip,
    uniform,
)
from .masks import DENSE_FROM, SparsityMasks, select_parameters
from .optimizers import (
    AfterEveryStep,
    accumulative_counts,
    find_optim_wrapper,
    require_unsharded,
)
from .snip import NoScoresError, snip_scores, unwrap
from .start import INITS, MODES, VERSION, start


@HOOKS.register_module()
@dataclass(eq=False, repr=False)
class DynamicSparsityHook(Hook):
    """Train with a share of the weights at zero, as SLaK and PeLK are trained.

    Liu et al., "More ConvNets in the 2020s" (SLaK), ICLR 2023, section 3. The
    defaults are the recipe of the tiny models; the small and base ones use
    ``update_interval=100, prune_rate=0.3``.

    After every optimizer step the inactive weights and their optimizer state are set
    to zero. Every ``update_interval`` steps each layer drops the smallest of its
    active weights and activates as many others. Masks and schedule are in the
    checkpoint under ``sparsity``; the model's own entries are unchanged, so testing
    needs no hook.

    Args:
        sparsity: Share of the chosen weights that are zero, in (0.01, 1). It does not
            apply where zeros of a checkpoint are kept: they have a share of their own.
        mode: ``dynamic``; ``fixed``, which keeps the zeros of the weights that the
            training starts from (fine-tuning); ``auto``, which is ``fixed`` where 1 %
            or more of these weights are zero and else ``dynamic``, and in a resumed
            run the mode that it had before; or ``off``, which does nothing.
        init: Where the zeros of a dynamic run are at first. ``snip``, ``erk`` and
            ``uniform`` give each layer its density and draw the positions (where a
            batch of the training has no scores for ``snip``, it is ``erk``);
            ``resume`` takes the zeros of the weights that the training starts from.
        growth: Which weights are activated: ``random`` ones, or by ``gradient`` those
            of the largest gradient.
        update_interval: Optimizer steps between two updates of the masks.
        prune_rate: Share of a layer's active weights that the first update drops, in
            (0, 1). It falls along half a cosine to ``min_prune_rate``.
        min_prune_rate: The share at the end of the training, in [0, prune_rate].
        patterns: Regular expressions for the names of the weights; of those that
            match, the trainable 2-D and 4-D ones are chosen.
        large_kernels_only: Whether to choose only depthwise kernels of 7 or more
            along an axis.
        seed: Seed of the masks, in [0, 2**32); by default the run's.

    Raises:
        ValueError: If an argument is out of its range.
    """

    # After EMAHook, whose averaged copy is masked, and before anything is saved.
    priority = 'BELOW_NORMAL'

    sparsity: float = 0.4
    mode: str = 'dynamic'
    init: str = 'snip'
    growth: str = 'random'
    update_interval: int = 2000
    prune_rate: float = 0.5
    min_prune_rate: float = 0.005
    patterns: Sequence[str] = (r'^backbone\.',)
    large_kernels_only: bool = False
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, choices in (('mode', MODES), ('init', INITS), ('growth', GROWTHS)):
            if (value := getattr(self, name)) not in choices:
                raise ValueError(f'{name} {value!r} is not one of {", ".join(choices)}')
        if not 1 - DENSE_FROM < self.sparsity < 1:
            raise ValueError(
                f'sparsity {self.sparsity} is not in (0.01, 1); to train without any, '
                "set mode='off'"
            )
        if not 0 <= self.min_prune_rate <= self.prune_rate < 1:
            raise ValueError(
                f'prune_rate {self.prune_rate} and min_prune_rate '
                f'{self.min_prune_rate} are not in descending order in [0, 1)'
            )
        if not isinstance(self.update_interval, int) or self.update_interval < 1:
            raise ValueError(
                f'update_interval {self.update_interval!r} is not a positive integer'
            )
        if isinstance(self.patterns, str):
            raise ValueError(
                f'patterns {self.patterns!r} is one string, not a list of them'
            )
        if self.seed is not None and not 0 <= self.seed < 2**32:
            raise ValueError(f'seed {self.seed} is not in [0, 2**32)')
        #: ``mode``; once the training starts, what ``auto`` has become.
        self.chosen_mode = self.mode
        self.masks: SparsityMasks | None = None
        #: Optimizer steps made; those that a loss scaler skipped do not count.
        self.steps = 0
        self.total_steps = 0
        self.generator = torch.Generator()
        self._saved: dict[str, Any] | None = None
        self._ema_is_behind = False
        self._after_every_step: AfterEveryStep | None = None

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep the checkpoint's masks for `before_train`, in case of a resume."""
        if self.mode != 'off':
            self._saved = checkpoint.get('sparsity')
            if not isinstance(self._saved, (Mapping, NoneType)):
                raise CheckpointError(
                    'the sparsity entry of the checkpoint is a '
                    f'{type(self._saved).__name__}; resume another one'
                )

    def before_train(self, runner: Runner) -> None:
        """Find or restore the masks and apply them.

        Raises:
            RuntimeError: If the model is sharded, or the optimizer wrapper does not
                tell over how many iterations it accumulates gradients.
            ValueError: If the weights, the checkpoint and the settings do not fit
                together.
        """
        if self.mode == 'off':
            return
        require_unsharded(runner)
        model = unwrap(runner.model)
        model.train()  # it freezes the stages of `frozen_stages`
        params = select_parameters(model, self.patterns, self.large_kernels_only)
        wrapper = find_optim_wrapper(runner.optim_wrapper, params)
        self.total_steps = ceil(runner.max_iters / accumulative_counts(wrapper))
        masks = self.masks = self._make_masks(runner, params)
        self._saved = None
        masks.apply(wrapper.optimizer)
        self._mask_ema(runner, masks)
        self._log(runner, masks, regrown=0)
        if self._after_every_step is not None:
            self._after_every_step.remove()
        self._after_every_step = AfterEveryStep(
            runner.model,
            wrapper.optimizer,
            lambda: self._after_step(runner, masks, wrapper.optimizer),
            with_gradients=self.growth == 'gradient',
        )
        print_log(self._summary(masks), logger='current')

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Mask EMAHook's copy after the masks have changed."""
        if self._after_every_step is not None:
            self._after_every_step.catch_up()
        if self.masks is not None and self._ema_is_behind:
            self._mask_ema(runner, self.masks)

    def after_train(self, runner: Runner) -> None:
        """Check once more that all processes agree, and stop masking."""
        if self.masks is not None:
            self._verify_masks(self.masks)
        if self._after_every_step is not None:
            self._after_every_step.remove()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add masks and schedule as plain tensors, numbers and names."""
        if self.masks is not None:
            checkpoint['sparsity'] = dict(
                version=VERSION,
                mode=self.chosen_mode,
                steps=self.steps,
                generator=self.generator.get_state(),
                **self.masks.state_dict(),
            )

    def _make_masks(
        self, runner: Runner, params: dict[str, nn.Parameter]
    ) -> SparsityMasks:
        """Carry out what `start` decides."""
        begin = start(
            self.mode,
            self.init,
            self.sparsity,
            resumed=runner.iter > 0,
            saved=self._saved,
            zeros=share_of_zeros(params),
        )
        self.chosen_mode = begin.mode
        if begin.reason is not None:
            print_log(
                f'{type(self).__name__} (auto) is {begin.mode}, since {begin.reason}.',
                logger='current',
            )
        if begin.masks == 'checkpoint':
            return self._restore(params, begin.density)
        seed = runner.seed if self.seed is None else self.seed
        self.steps = 0
        self.generator.manual_seed(seed)
        if begin.masks == 'zeros':
            initial = masks_from_zeros(params)
        else:
            if begin.masks == 'snip':
                rule = self._snip_or_erk(runner, params, seed)
            else:
                rule = dict(erk=erk, uniform=uniform)[begin.masks]
            counts = allocate(params, 1 - self.sparsity, rule)
            initial = draw_masks(params, counts, self.generator)
        _take_from_first_rank(initial)
        masks = SparsityMasks(params, initial)
        masks.fill_active_zeros()
        return masks

    def _snip_or_erk(
        self, runner: Runner, params: dict[str, nn.Parameter], seed: int
    ) -> Rule:
        """SNIP's rule; where its batch has no scores, ERK with a warning."""
        try:
            return snip(snip_scores(runner, params, seed))
        except NoScoresError as error:
            # On this rank alone perhaps; what counts are the masks of rank 0.
            print_log(
                f"{type(self).__name__}: init='snip' has no scores, since {error}; "
                "the layers' densities are those of init='erk' instead.",
                logger='current',
                level=logging.WARNING,
            )
            return erk

    def _restore(
        self, params: dict[str, nn.Parameter], density: float | None
    ) -> SparsityMasks:
        """Take the schedule and masks, of a given density, from the checkpoint."""
        assert self._saved is not None  # `start` has refused that
        try:
            masks = SparsityMasks.from_state_dict(params, self._saved)
            steps = int(self._saved['steps'])
            self.generator.set_state(self._saved['generator'].cpu())
        except (
            KeyError,
            TypeError,
            AttributeError,
            RuntimeError,
            ValueError,
        ) as error:
            kind = '' if isinstance(error, ValueError) else f'{type(error).__name__} '
            raise CheckpointError(
                'the sparsity entry of the checkpoint cannot be resumed: '
                f'{kind}{first_line(error)}'
            ) from error
        if density is not None and abs(masks.density - density) > 1e-3 * density:
            raise ValueError(
                f'the resumed checkpoint has density {masks.density:.4f}, '
                f'sparsity {self.sparsity} asks for {density:.4f}; a resumed run keeps '
                f'its own, so set sparsity={1 - masks.density:.4f}'
            )
        self.steps = steps
        return masks

    def _verify_masks(self, masks: SparsityMasks) -> None:
        """Raise on all ranks if the masks of any differ."""
        if get_world_size() == 1:
            return
        sums = all_gather_object(masks.checksum())
        different = [rank for rank, value in enumerate(sums) if value != sums[0]]
        if different:
            raise RuntimeError(
                f'after {self.steps} steps the sparsity masks of ranks {different} '
                'differ from those of rank 0, so the model is not the same everywhere '
                'any more; resume from the last checkpoint'
            )

    def _after_step(
        self, runner: Runner, masks: SparsityMasks, optimizer: Optimizer
    ) -> None:
        self.steps += 1
        masks.apply(optimizer)
        # Not at the very end: what grows then would never be trained.
        if self.steps % self.update_interval or self.steps >= self.total_steps:
            return
        self._verify_masks(masks)
        if self.chosen_mode == 'dynamic':
            self._update(runner, masks, optimizer)

    def _update(
        self, runner: Runner, masks: SparsityMasks, optimizer: Optimizer
    ) -> None:
        rate = prune_rate(
            self.steps, self.total_steps, self.prune_rate, self.min_prune_rate
        )
        updated = {}
        for name, param in masks.params.items():
            grad = None
            if self.growth == 'gradient':
                grad = torch.zeros_like(param) if param.grad is None else param.grad
            updated[name] = prune_and_grow(
                param, masks.masks[name], rate, self.generator, grad
            )
        _take_from_first_rank(updated)
        regrown = masks.replace(updated, optimizer)
        self._verify_masks(masks)
        self._ema_is_behind = True
        self._log(runner, masks, regrown)

    def _mask_ema(self, runner: Runner, masks: SparsityMasks) -> None:
        for hook in runner.hooks:
            if isinstance(hook, EMAHook):
                masks.apply_to(hook.ema_model.module)
        self._ema_is_behind = False

    @staticmethod
    def _log(runner: Runner, masks: SparsityMasks, regrown: int) -> None:
        runner.message_hub.update_scalar('train/density', masks.density)
        runner.message_hub.update_scalar('train/regrown', regrown)

    def _summary(self, masks: SparsityMasks) -> str:
        updates = 0
        if self.chosen_mode == 'dynamic':
            interval = self.update_interval
            updates = (self.total_steps - 1) // interval - self.steps // interval
        return (
            f'{type(self).__name__} ({self.chosen_mode}): {masks.active} of '
            f'{masks.total} weights are active (density {masks.density:.4f}) in '
            f'{len(masks.masks)} sparse and {len(masks.dense)} dense layers; '
            f'{updates} updates of the masks are to come.'
        )


def _take_from_first_rank(masks: Mapping[str, Tensor]) -> None:
    """Overwrite the masks of every rank with those of rank 0."""
    for mask in masks.values():
        broadcast(mask)
