"""What PeLK, SLaK and RepLKNet share: one contract, written once."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from math import ceil
from typing import Any, ClassVar, NoReturn

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pelk_mm.layers import ConvNorm, batch_norms, lay_out
from pelk_mm.ops import is_plain, plain

from .arguments import argument_names, explain_unknown
from .weights import before_init, before_loading

#: The norm of the released models; read only.
BATCH_NORM = dict(type='BN')


@contextmanager
def _preserve_running_stats(module: nn.Module) -> Iterator[None]:
    """Run a forward pass that does not update BatchNorm's running statistics.

    Activation checkpointing runs a block twice per step; without this the
    statistics would be updated twice as well.
    """
    norms = list(batch_norms(module))
    states = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked = norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, (momentum, num_batches_tracked) in zip(norms, states, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked = num_batches_tracked


class Stage(nn.Module):
    """A sequence of blocks at one resolution.

    Args:
        blocks: The blocks, each called with the feature map and `block_args`.
        with_cp: Whether to recompute each block's activations in the backward pass
            instead of keeping them.
    """

    def __init__(self, blocks: Sequence[nn.Module], with_cp: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.with_cp = with_cp

    def block_args(self) -> tuple[Tensor, ...]:
        """Tensors that all blocks of the stage share, computed once per forward."""
        return ()

    def forward(self, x: Tensor) -> Tensor:
        """Run the blocks over ``x`` of shape (N, C, H, W); the shape stays."""
        args = self.block_args()
        for block in self.blocks:
            if self.with_cp and torch.is_grad_enabled():
                x = self._run_checkpointed(block, x, *args)
            else:
                x = block(x, *args)
        return x

    @staticmethod
    def _run_checkpointed(block: nn.Module, *args: Tensor) -> Tensor:
        switch = is_plain()

        @contextmanager
        def recomputing() -> Iterator[None]:
            # In a thread of autograd's, perhaps, that knows nothing of this one's.
            with _preserve_running_stats(block), plain(switch):
                yield

        def contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
            return nullcontext(), recomputing()

        return checkpoint(block, *args, use_reentrant=False, context_fn=contexts)


class LargeKernelBackbone(BaseModule):
    """A pyramid of stages with one feature map per stage.

    A subclass fills ``downsample_layers`` (the stem first) and ``stages``, may add
    ``norm{i}``, a module that is applied to the output of stage i, and ends its
    constructor with ``self._freeze_stages()``.

    Args:
        channels: Width of each stage.
        depths: Layers in each stage, a layer being what the paper counts as one.
        out_indices: Stages whose feature maps are returned. Stages after the last of
            them are built, so that checkpoints fit, but neither run nor trained.
        frozen_stages: -1 freezes nothing, 0 the stem, n the stem and the first n
            stages with the downsampling before them.
        norm_eval: Whether BatchNorms keep their running statistics in training.
        with_cp: Whether to trade memory for recomputation in the blocks.
        deploy: Whether to build the deployment form that `switch_to_deploy` makes.
        init_cfg: mmengine's initialisation config.
        partial_weights: Whether a checkpoint may be loaded that leaves a part of the
            backbone at random, which is an error if not.
        unknown: Arguments of any other name, which are refused.

    Raises:
        TypeError: If there is an argument of another name; the message says what the
            released implementations' names are called here.
        ValueError: If ``out_indices`` or ``frozen_stages`` is out of range.
    """

    #: Settings of each named architecture.
    arch_settings: ClassVar[dict[str, dict[str, Any]]] = {}
    #: Keys that an ``arch`` dict must have, and defaults of those that it may have.
    required_keys: ClassVar[tuple[str, ...]] = ('channels', 'depths', 'kernel_sizes')
    arch_defaults: ClassVar[dict[str, Any]] = {}
    #: The largest entries of the lists: beyond any use, and built within seconds.
    largest: ClassVar[dict[str, int]] = dict(
        channels=2**16, depths=500, kernel_sizes=1023
    )
    #: Entries of a stage's ``blocks`` that make one layer of the paper's count.
    blocks_per_layer: ClassVar[int] = 1
    #: What ``pelk-mm convert_checkpoint --warm-start`` has to be given for a checkpoint
    #: of another family that this backbone starts from; '' if it starts from none.
    warm_start: str = ''
    #: Whether the weights are loaded ones, or trained.
    has_weights: bool = False
    #: Whether they were loaded by the initialisation of a module around this one.
    loaded_in_init: bool = False

    def __init__(
        self,
        channels: Sequence[int],
        depths: Sequence[int],
        /,  # arguments of these names are among the unknown ones
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        deploy: bool = False,
        init_cfg: dict | list[dict] | None = None,
        partial_weights: bool = False,
        **unknown: Any,
    ) -> None:
        if unknown:
            self._refuse_arguments(unknown)
        super().__init__(init_cfg=init_cfg)
        self.channels = tuple(channels)
        self.depths = tuple(depths)
        stages = len(self.channels)
        out_indices = tuple(out_indices)
        if not out_indices or list(out_indices) != sorted(
            set(out_indices) & set(range(stages))
        ):
            raise ValueError(
                f'out_indices {out_indices} of {type(self).__name__} must be '
                f'ascending stage numbers from 0 to {stages - 1}'
            )
        if frozen_stages not in range(-1, stages + 1):
            raise ValueError(
                f'frozen_stages {frozen_stages} of {type(self).__name__} is not in '
                f'-1 to {stages}'
            )
        self.out_indices = out_indices
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.with_cp = with_cp
        self.deploy = deploy
        self.partial_weights = partial_weights
        self.downsample_layers = nn.ModuleList()
        self.stages = nn.ModuleList()
        self.register_load_state_dict_pre_hook(before_loading)

    @classmethod
    def _arguments(cls) -> list[str]:
        """Names of the arguments that a config may give."""
        return argument_names(
            ancestor.__init__
            for ancestor in cls.__mro__
            if issubclass(ancestor, LargeKernelBackbone)
        )

    @classmethod
    def _arch_keys(cls) -> list[str]:
        """Keys that an ``arch`` dict may have, first those that it must have."""
        return [*cls.required_keys, *cls.arch_defaults]

    @classmethod
    def _refuse_arguments(cls, unknown: Mapping[str, Any]) -> NoReturn:
        arguments, keys = cls._arguments(), cls._arch_keys()
        raise TypeError(
            f'{cls.__name__} has no argument {", ".join(unknown)}; it takes '
            f'{", ".join(arguments)}. Write instead of'
            f'{explain_unknown(unknown, False, arguments, keys)}'
        )

    @classmethod
    def resolve_arch(cls, arch: str | dict[str, Any]) -> dict[str, Any]:
        """Look up an ``arch`` name or check an ``arch`` dict.

        Returns:
            The settings, a new dict with all keys.

        Raises:
            ValueError: If the name is unknown, a key is missing or unknown, or the
                lists differ in length or hold anything but positive integers up to
                ``largest``.
        """
        if isinstance(arch, str) and arch in cls.arch_settings:
            return cls.arch_defaults | cls.arch_settings[arch]
        if not isinstance(arch, dict):
            what = 'unknown' if isinstance(arch, str) else 'neither a name nor a dict'
            raise ValueError(
                f'arch {arch!r} of {cls.__name__} is {what}; choose one of '
                f'{", ".join(cls.arch_settings)} or give a dict'
            )
        keys = cls._arch_keys()
        missing = sorted(set(cls.required_keys) - set(arch))
        unknown = sorted(set(arch) - set(keys))
        if unknown or missing:
            problems = [f'lacks {missing}'] * bool(missing)
            problems += [f'has unknown keys {unknown}'] * bool(unknown)
            given = {key: arch[key] for key in unknown}
            instead = explain_unknown(given, True, cls._arguments(), keys)
            raise ValueError(
                f'arch dict of {cls.__name__} {" and ".join(problems)}; it takes '
                f'{", ".join(keys)}' + f'. Write instead of{instead}' * bool(instead)
            )
        for key, largest in cls.largest.items():
            if not isinstance(arch[key], (list, tuple)) or not all(
                isinstance(value, int) and 0 < value <= largest for value in arch[key]
            ):
                raise ValueError(
                    f'{key} {arch[key]!r} in the arch dict of {cls.__name__} must be '
                    f'a list of integers from 1 to {largest}, one per stage'
                )
        lists = {k: v for k, v in arch.items() if isinstance(v, (list, tuple))}
        lengths = {key: len(values) for key, values in lists.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(
                f'arch dict of {cls.__name__} needs one value per stage in each list, '
                f'got {lengths}'
            )
        return cls.arch_defaults | arch

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the feature maps of the stages in ``out_indices``.

        Args:
            x: Images of shape (N, in_channels, H, W).

        Returns:
            One map of shape (N, channels[i], h_i, w_i) for each output stage i. Maps
            are contiguous: convolutions would pass channels_last on, and operators of
            mmcv, such as RoIAlign, read any map as if it were contiguous.

        Raises:
            ValueError: If the images are so small that a map would vanish.
        """
        outs = []
        height, width = x.shape[-2:]
        x = lay_out(x)
        for i in range(self.out_indices[-1] + 1):
            if min(x.shape[-2:]) < self.min_map_size(i):
                raise ValueError(
                    f'images of {height} x {width} pixels leave nothing for '
                    f'stage {i} of {type(self).__name__}; pad them, for '
                    'example to multiples of 32: model.data_preprocessor of mmseg has '
                    'test_cfg=dict(size_divisor=32), that of mmdet pad_size_divisor=32'
                )
            x = self.stages[i](self.downsample_layers[i](x))
            if i in self.out_indices:
                norm = getattr(self, f'norm{i}', None)
                outs.append((x if norm is None else norm(x)).contiguous())
        return tuple(outs)

    def min_map_size(self, stage: int) -> int:
        """Least height and width that the downsampling before a stage needs."""
        return 1

    def _freeze_stages(self) -> None:
        # DistributedDataParallel waits in vain for gradients of what is not run.
        used = self.out_indices[-1] + 1
        for part in (*self.downsample_layers[used:], *self.stages[used:]):
            part.requires_grad_(False)
        if self.frozen_stages < 0:
            return
        downsample_layers = self.downsample_layers[: max(self.frozen_stages, 1)]
        for part in (*downsample_layers, *self.stages[: self.frozen_stages]):
            part.eval().requires_grad_(False)

    def init_weights(self) -> None:
        """Initialise; a checkpoint that leaves a part at random is an error."""
        before_init(self)
        super().init_weights()

    def train(self, mode: bool = True) -> 'LargeKernelBackbone':
        """Set the training mode where ``frozen_stages`` and ``norm_eval`` allow it."""
        super().train(mode)
        if mode:
            self.has_weights = True  # those that training starts from, or that it made
            self._freeze_stages()
        if self.norm_eval:
            for norm in batch_norms(self):
                norm.eval()
        return self

    def switch_to_deploy(self) -> None:
        """Fold norms, small kernels, embeddings and layer scales into convolutions.

        The result computes the same function and equals a backbone built with
        ``deploy=True``. A second call does nothing and says so. Output norms stay:
        no convolution precedes them directly.

        Raises:
            RuntimeError: If a norm before or after a convolution depends on its
                input, as a BatchNorm in training mode and any other kind of norm do;
                nothing is changed then.
        """
        if self.deploy:
            kind = type(self).__name__
            print_log(f'{kind} is in its deployment form already.', logger='current')
            return
        for name, module in self.named_modules():
            if isinstance(module, ConvNorm):
                for norm, problem in module.unfoldable():
                    raise RuntimeError(f'{name}.{norm} {problem}')
        # Outer modules come first: a stage puts its embedding into convolutions
        # whose norms and neighbours are folded after that.
        modules: list[Any] = list(self.modules())
        for module in modules:
            if module is not self and hasattr(module, 'switch_to_deploy'):
                module.switch_to_deploy()
        for parent in list(self.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, ConvNorm):
                    setattr(parent, name, child.fold())
        self.deploy = True

    def _first_layer(self, stage: int) -> int:
        """Number of the first layer of a stage for layer-wise decay.

        ConvNeXt's rule: the stem is layer 0 and up to three successive blocks of a
        stage are one layer.
        """
        return 1 + sum(ceil(depth / 3) for depth in self.depths[:stage])

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Layer of a parameter for layer-wise learning-rate decay.

        Args:
            param_name: The parameter's full name.
            prefix: What its name starts with if it is the backbone's, for example
                ``'backbone.'``.

        Returns:
            The layer, 0 for the stem, and the number of layers. Output norms and
            parameters outside the backbone are in the last one.
        """
        last = self._first_layer(len(self.depths))
        part, stage, block = self._locate(param_name, prefix)
        if part is None:
            return last, last + 1
        if part == 'downsample_layers' and stage == 0:
            return 0, last + 1
        layer = self._first_layer(stage) + block // self.blocks_per_layer // 3
        return layer, last + 1

    def get_stage_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Like `get_layer_depth`, but the same for all blocks of a stage.

        As in ConvNeXt's and SLaK's released recipes the stem and every downsampling
        are layer 0, stage i is layer i + 1, and the number of layers is that of
        `get_layer_depth`.
        """
        last = self._first_layer(len(self.depths))
        part, stage, _ = self._locate(param_name, prefix)
        layer = {None: last, 'downsample_layers': 0, 'stages': stage + 1}[part]
        return layer, last + 1

    def _drop_path_rates(self, last: float) -> Iterator[float]:
        """Rates of the layers from first to last, rising linearly from 0.

        Raises:
            ValueError: If the last rate is not in [0, 1).
        """
        if not 0 <= last < 1:
            raise ValueError(
                f'drop_path_rate {last} of {type(self).__name__} is not in [0, 1)'
            )
        steps = max(sum(self.depths) - 1, 1)
        return (last * step / steps for step in range(sum(self.depths)))

    @staticmethod
    def _locate(param_name: str, prefix: str) -> tuple[str | None, int, int]:
        """Part, stage and block of a parameter; part None if in neither list."""
        pattern = r'(downsample_layers|stages)\.(\d+)\.(?:blocks\.(\d+)\.)?'
        match = re.match(re.escape(prefix) + pattern, param_name)
        if match is None:
            return None, 0, 0
        return match[1], int(match[2]), int(match[3] or 0)
