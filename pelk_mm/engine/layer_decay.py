"""Layer-wise and stage-wise learning-rate decay for the three backbones."""

from typing import Any

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LargeKernelLayerDecayOptimizerConstructor(DefaultOptimWrapperConstructor):
    """Scale learning rates down towards the stem.

    The learning rate of a parameter in layer l of n is the base rate times
    ``decay_rate ** (n - 1 - l)``. The backbone tells the layer of its parameters;
    those outside it are in the last one. Norms, biases, layer scale and positional
    embeddings have no weight decay. mmseg's and mmdet's own constructors support
    ConvNeXt, not these backbones.

    Args:
        optim_wrapper_cfg: Config of the optimizer wrapper.
        paramwise_cfg: ``decay_rate`` in (0, 1] and ``decay_type``, ``layer_wise``
            or ``stage_wise``.

    Raises:
        ValueError: If ``paramwise_cfg`` is anything else, or the optimizer's
            config has no ``lr``.
    """

    def __init__(
        self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None
    ) -> None:
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        if self.base_lr is None:
            raise ValueError(f'the optimizer {self.optimizer_cfg} has no lr to scale')
        cfg = dict(self.paramwise_cfg)
        self.decay_rate = cfg.pop('decay_rate', None)
        self.decay_type = cfg.pop('decay_type', None)
        if (
            cfg
            or not isinstance(self.decay_rate, (int, float))
            or not 0 < self.decay_rate <= 1
            or self.decay_type not in ('layer_wise', 'stage_wise')
        ):
            raise ValueError(
                f'paramwise_cfg {dict(self.paramwise_cfg)} of {type(self).__name__} '
                'needs exactly decay_rate, in (0, 1], and decay_type, layer_wise or '
                'stage_wise'
            )

    def add_params(
        self, params: list[dict[str, Any]], module: nn.Module, **kwargs: Any
    ) -> None:
        """Group the trainable parameters of a model by layer and weight decay.

        Args:
            params: The list that receives the groups.
            module: A model with a ``backbone`` of ours.
            kwargs: Ignored; mmengine's own constructor uses them in its recursion.

        Raises:
            TypeError: If the model's backbone does not tell its parameters' layers.
        """
        method = {'layer_wise': 'get_layer_depth', 'stage_wise': 'get_stage_depth'}
        backbone = getattr(module, 'backbone', None)
        depth_of = getattr(backbone, method[self.decay_type], None)
        if depth_of is None:
            raise TypeError(
                f'{type(self).__name__} needs a model whose backbone has '
                f'{method[self.decay_type]}(); {type(module).__name__} with backbone '
                f'{type(backbone).__name__} has none'
            )
        groups: dict[str, dict[str, Any]] = {}
        for name, param in module.named_parameters():
            if not param.requires_grad:
                continue
            layer, num_layers = depth_of(name, prefix='backbone.')
            decayed = param.ndim > 1 and not name.endswith('position_embedding')
            scale = self.decay_rate ** (num_layers - 1 - layer)
            group_name = f'layer_{layer}_{"decay" if decayed else "no_decay"}'
            group = groups.setdefault(
                group_name,
                dict(
                    params=[],
                    param_names=[],
                    group_name=group_name,
                    lr_scale=scale,
                    lr=scale * self.base_lr,
                    **({} if decayed else {'weight_decay': 0.0}),
                ),
            )
            group['params'].append(param)
            group['param_names'].append(name)
        for name, group in sorted(groups.items()):
            print_log(
                f'{name}: {len(group["params"])} parameters, lr {group["lr"]:.3g}',
                logger='current',
            )
        params.extend(groups.values())
