"""Dynamic sparsity for mmengine's Runner."""

from math import ceil
from typing import Any, ClassVar

import torch
from mmengine.dist import all_gather, broadcast, get_world_size
from mmengine.hooks import EMAHook, Hook
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.optim import Optimizer

from .growth import GROWTHS, prune_and_grow, prune_rate
from .initializers import (
    allocate,
    check_not_sparse,
    draw_masks,
    erk,
    masks_of_zeros,
    share_of_zeros,
    snip,
    trained_sparse,
    uniform,
)
from .masks import DENSE, SparsityMasks, pack, select_parameters, unpack
from .snip import snip_scores, unwrap

MODES = ('dynamic', 'fixed', 'auto', 'off')
INITS = ('snip', 'erk', 'uniform', 'resume')


@HOOKS.register_module()
class DynamicSparsityHook(Hook):
    """Train with a share of the weights at zero, as SLaK and PeLK are trained.

    Liu et al., "More ConvNets in the 2020s" (SLaK), ICLR 2023, section 3. The
    defaults are the recipe of the tiny models; the small and base ones use
    ``update_interval=100, prune_rate=0.3``.

    After every optimiser step the inactive weights and what the optimiser remembers
    of them are set to zero. Every ``update_interval`` steps each layer drops the
    smallest of its active weights and activates as many others. Masks and schedule
    are in the checkpoint under ``sparsity``; the model's own entries, and so
    testing, are not changed.

    Args:
        sparsity: Share of the chosen weights that are zero, in (0.01, 1). With zeros
            from a checkpoint their share counts instead.
        mode: ``dynamic``; ``fixed``, which keeps the zeros of the weights that the
            training starts from (fine-tuning); ``auto``, which is ``fixed`` where 1 %
            or more of them are zero, otherwise ``dynamic``, and in a resumed run what
            it was before; or ``off``, which does nothing.
        init: Where the zeros of a dynamic run are at first. ``snip``, ``erk`` and
            ``uniform`` give each layer its density and draw the zeros; ``resume``
            takes the zeros of the weights that the training starts from.
        growth: Which weights are activated: ``random`` ones, or by ``gradient`` those
            of the largest gradient.
        update_interval: Optimiser steps between two updates of the masks.
        prune_rate: Share of a layer's active weights that the first update drops, in
            (0, 1); it falls along half a cosine
        min_prune_rate: to this at the end of the training.
        patterns: Regular expressions for the names of the weights; of those found,
            the trainable 2-D and 4-D ones are chosen.
        large_kernels_only: Whether to choose depthwise kernels of 7 or more along an
            axis alone.
        seed: Seed of the masks; by default the run's.

    Raises:
        ValueError: If an argument is out of its range.
    """

    # After EMAHook, whose copy is masked, and before anything is saved.
    priority = 'BELOW_NORMAL'

    #: Version of the checkpoint's entry.
    VERSION: ClassVar[int] = 1

    def __init__(
        self,
        sparsity: float = 0.4,
        mode: str = 'dynamic',
        init: str = 'snip',
        growth: str = 'random',
        update_interval: int = 2000,
        prune_rate: float = 0.5,
        min_prune_rate: float = 0.005,
        patterns: tuple[str, ...] | list[str] = (r'^backbone\.',),
        large_kernels_only: bool = False,
        seed: int | None = None,
    ) -> None:
        for name, value, choices in (
            ('mode', mode, MODES),
            ('init', init, INITS),
            ('growth', growth, GROWTHS),
        ):
            if value not in choices:
                raise ValueError(f'{name} {value!r} is not one of {", ".join(choices)}')
        if not 1 - DENSE < sparsity < 1:
            raise ValueError(
                f'sparsity {sparsity} is not in (0.01, 1); to train without any, set '
                "mode='off'"
            )
        if not 0 <= min_prune_rate <= prune_rate < 1:
            raise ValueError(
                f'prune_rate {prune_rate} and min_prune_rate {min_prune_rate} are not '
                'in falling order in [0, 1)'
            )
        if not isinstance(update_interval, int) or update_interval < 1:
            raise ValueError(
                f'update_interval {update_interval!r} is not a positive integer'
            )
        if isinstance(patterns, str):
            raise ValueError(f'patterns {patterns!r} is one string, not a list of them')
        self.sparsity = sparsity
        self.mode = mode
        self.init = init
        self.growth = growth
        self.update_interval = update_interval
        self.prune_rate = prune_rate
        self.min_prune_rate = min_prune_rate
        self.patterns = tuple(patterns)
        self.large_kernels_only = large_kernels_only
        self.seed = seed
        #: ``mode``, or what ``auto`` has chosen once the training starts.
        self.chosen_mode = mode
        self.masks: SparsityMasks | None = None
        #: Optimiser steps made; those that a loss scaler skipped do not count.
        self.steps = 0
        self.total_steps = 0
        self.generator = torch.Generator()
        self._loaded: dict[str, Any] | None = None
        self._ema_is_behind = False
        self._step_hook: Any = None

    @property
    def _draws_masks(self) -> bool:
        """Whether the masks are our own and not those of the initial weights."""
        return self.chosen_mode == 'dynamic' and self.init != 'resume'

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Remember the masks in case that this is a resume."""
        if self.mode != 'off':
            self._loaded = checkpoint.get('sparsity')

    def before_train(self, runner: Runner) -> None:
        """Find or restore the masks and apply them.

        Raises:
            RuntimeError: If the model is sharded.
            ValueError: If the weights, the checkpoint and the settings do not fit.
        """
        if self.mode == 'off':
            return
        check_not_sharded(runner)
        model = unwrap(runner.model)
        model.train()  # which freezes the stages that shall be frozen
        params = select_parameters(model, self.patterns, self.large_kernels_only)
        optimizer = find_optimizer(runner.optim_wrapper, params)
        accumulated = getattr(runner.optim_wrapper, '_accumulative_counts', 1)
        self.total_steps = ceil(runner.max_iters / accumulated)
        resumed = runner.iter > 0
        if resumed:
            self._check_loaded()
        if self.mode == 'auto':
            self._choose_mode(params, resumed)
        if resumed:
            self._restore(params)
        else:
            self._initialize(runner, params)
        self._loaded = None
        self.masks.apply(optimizer)
        self._mask_ema(runner)
        self._log(runner, regrown=0)
        if self._step_hook is not None:
            self._step_hook.remove()
        # Inside the optimiser's step: a step that gradient accumulation puts off or
        # the loss scaler skips needs no mask, and no other hook sees unmasked weights.
        self._step_hook = optimizer.register_step_post_hook(
            lambda optimizer, args, kwargs: self._after_step(runner, optimizer)
        )
        print_log(self._summary(), logger='current')

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict | None = None,
    ) -> None:
        """Mask the averaged copy after the masks have changed."""
        if self._ema_is_behind:
            self._mask_ema(runner)

    def after_train(self, runner: Runner) -> None:
        """Check once more that all processes agree, and stop masking."""
        if self.masks is not None:
            self.masks_verified()
            self._step_hook.remove()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add masks and schedule as plain tensors, numbers and names."""
        if self.masks is not None:
            checkpoint['sparsity'] = dict(
                version=self.VERSION,
                mode=self.chosen_mode,
                steps=self.steps,
                generator=self.generator.get_state(),
                **self.masks.state_dict(),
            )

    def _check_loaded(self) -> None:
        state = self._loaded
        if state is None:
            raise ValueError(
                'the resumed checkpoint was trained without DynamicSparsityHook; to '
                'start from its weights use load_from without resume, to go on dense '
                "set mode='off'"
            )
        if state.get('version') != self.VERSION:
            raise ValueError(
                f'the sparsity entry of the checkpoint has version '
                f'{state.get("version")!r}, this pelk_mm reads {self.VERSION}'
            )

    def _choose_mode(self, params: dict[str, nn.Parameter], resumed: bool) -> None:
        if resumed:
            # Entries without the mode are older than auto; the configs that have
            # auto now were dynamic then.
            self.chosen_mode = self._loaded.get('mode', 'dynamic')
            reason = 'the resumed run was'
        else:
            self.chosen_mode = 'fixed' if trained_sparse(params) else 'dynamic'
            reason = (
                f'{share_of_zeros(params):.1%} of the weights that the training starts '
                'from are zero'
            )
        print_log(
            f'{type(self).__name__} (auto) is {self.chosen_mode}, since {reason}.',
            logger='current',
        )

    def _restore(self, params: dict[str, nn.Parameter]) -> None:
        state = self._loaded
        self.masks = SparsityMasks.from_state_dict(params, state)
        wanted = 1 - self.sparsity
        if self._draws_masks and abs(self.masks.density - wanted) > 1e-3 * wanted:
            raise ValueError(
                f'the resumed checkpoint has density {self.masks.density:.4f}, '
                f'sparsity {self.sparsity} asks for {wanted:.4f}; a resumed run keeps '
                f'its own, so set sparsity={1 - self.masks.density:.4f}'
            )
        self.steps = int(state['steps'])
        self.generator.set_state(state['generator'].cpu())

    def _initialize(self, runner: Runner, params: dict[str, nn.Parameter]) -> None:
        seed = runner.seed if self.seed is None else self.seed
        self.steps = 0
        self.generator.manual_seed(seed)
        if self._draws_masks:
            check_not_sparse(params)
            if self.init == 'snip':
                rule = snip(snip_scores(runner, params, seed))
            else:
                rule = {'erk': erk, 'uniform': uniform}[self.init]
            counts = allocate(params, 1 - self.sparsity, rule)
            masks = draw_masks(params, counts, self.generator)
        else:
            masks = masks_of_zeros(params)
        self.masks = SparsityMasks(params, self._decided_once(masks))
        self.masks.wake()

    @staticmethod
    def _decided_once(masks: dict[str, Tensor]) -> dict[str, Tensor]:
        """The masks of rank 0, on every rank."""
        if get_world_size() == 1:
            return masks
        packed = pack(masks)
        broadcast(packed)
        return unpack(packed, masks)

    def masks_verified(self) -> None:
        """Compare the masks of all ranks by a checksum.

        Raises:
            RuntimeError: If any differs, on all ranks.
        """
        if get_world_size() == 1:
            return
        device = next(iter(self.masks.masks.values())).device
        sums = all_gather(torch.tensor([self.masks.checksum()], device=device))
        different = [rank for rank, s in enumerate(sums) if int(s) != int(sums[0])]
        if different:
            raise RuntimeError(
                f'after {self.steps} steps the sparsity masks of ranks {different} '
                'differ from those of rank 0, so the model is not the same everywhere '
                'any more; resume from the last checkpoint'
            )

    def _after_step(self, runner: Runner, optimizer: Optimizer) -> None:
        self.steps += 1
        self.masks.apply(optimizer)
        # Not at the very end: what grows then would never be trained.
        if self.steps % self.update_interval or self.steps >= self.total_steps:
            return
        self.masks_verified()
        if self.chosen_mode == 'dynamic':
            self._update(runner, optimizer)

    @torch.no_grad()
    def _update(self, runner: Runner, optimizer: Optimizer) -> None:
        rate = prune_rate(
            self.steps, self.total_steps, self.prune_rate, self.min_prune_rate
        )
        masks = {}
        for name, param in self.masks.params.items():
            grad = None
            if self.growth == 'gradient':
                grad = torch.zeros_like(param) if param.grad is None else param.grad
            masks[name] = prune_and_grow(
                param, self.masks.masks[name], rate, self.generator, grad
            )
        regrown = self.masks.replace(self._decided_once(masks), optimizer)
        self.masks_verified()
        self._ema_is_behind = True
        self._log(runner, regrown)

    def _mask_ema(self, runner: Runner) -> None:
        for hook in runner.hooks:
            if isinstance(hook, EMAHook):
                self.masks.apply_to(hook.ema_model.module)
        self._ema_is_behind = False

    def _log(self, runner: Runner, regrown: int) -> None:
        runner.message_hub.update_scalar('train/density', self.masks.density)
        runner.message_hub.update_scalar('train/regrown', regrown)

    def _summary(self) -> str:
        masks = self.masks
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


def find_optimizer(
    optim_wrapper: OptimWrapper, params: dict[str, nn.Parameter]
) -> Optimizer:
    """The optimiser that trains the chosen weights.

    Raises:
        ValueError: If it is not one that trains all of them.
    """
    wrappers = (
        optim_wrapper.optim_wrappers.values()
        if isinstance(optim_wrapper, OptimWrapperDict)
        else [optim_wrapper]
    )
    wanted = set(params.values())
    for wrapper in wrappers:
        groups = wrapper.optimizer.param_groups
        if wanted <= {param for group in groups for param in group['params']}:
            return wrapper.optimizer
    raise ValueError(
        'no optimizer trains all weights that shall be sparse; freeze the others '
        '(requires_grad) or choose by patterns those that one optimizer trains'
    )


def check_not_sharded(runner: Runner) -> None:
    """Refuse what leaves no process with whole weights and optimiser state.

    Raises:
        RuntimeError: Under FSDP, DeepSpeed, ColossalAI or a sharded optimiser.
    """
    parts = [
        runner.model,
        *runner.model.modules(),
        *runner.model.parameters(),
        runner.optim_wrapper,
        getattr(runner.optim_wrapper, 'optimizer', None),
        getattr(runner, 'strategy', None),
    ]
    # By name: importing these libraries to compare types would require them.
    markers = ('FullyShardedDataParallel', 'FSDP', 'DTensor', 'DeepSpeed', 'Colossal')
    for part in parts:
        for base in type(part).__mro__:
            if any(m in base.__name__ for m in (*markers, 'ZeroRedundancyOptimizer')):
                raise RuntimeError(
                    f'DynamicSparsityHook cannot run with {type(part).__name__}: '
                    'weights or optimizer state are spread over processes, and no '
                    'process sees a whole layer to prune; train with DDP or set mode='
                    "'off'"
                )
