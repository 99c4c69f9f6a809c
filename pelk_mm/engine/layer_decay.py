"""Layer-wise and stage-wise learning-rate decay for the three backbones."""

import logging
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from functools import partial
from typing import Any

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from pelk_mm.layers import DepthwiseConv2d, PeripheralConv2d

#: What a backbone is asked for the layer of a parameter, by ``decay_type``.
DEPTH_METHODS = dict(layer_wise='get_layer_depth', stage_wise='get_stage_depth')
#: Multipliers that mmengine's constructor knows.
MULTIPLIERS = (
    'bias_lr_mult',
    'bias_decay_mult',
    'norm_decay_mult',
    'dwconv_decay_mult',
    'flat_decay_mult',
    'dcn_offset_lr_mult',
)
KEYS = (
    *('decay_rate', 'decay_type', 'num_layers', 'custom_keys', 'bypass_duplicate'),
    *MULTIPLIERS,
)
#: From a parameter's name to its layer and the number of layers.
DepthOf = Callable[[str], tuple[int, int]]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LargeKernelLayerDecayOptimizerConstructor(DefaultOptimWrapperConstructor):
    """Scale learning rates down towards the stem.

    The learning rate of a parameter in layer l of n is multiplied by
    ``decay_rate ** (n - 1 - l)``. The backbone tells the layers of its parameters,
    wherever it lies in the model; those outside any backbone are in the last one.
    Parameters with fewer than two axes, as of norms, biases and layer scales, and
    positional embeddings have no weight decay, unless a multiplier says otherwise.
    mmseg's and mmdet's own constructors support ConvNeXt, not these backbones.

    Args:
        optim_wrapper_cfg: Config of the optimizer wrapper.
        paramwise_cfg: A dict with

            - ``decay_rate``: in (0, 1];
            - ``decay_type``: ``layer_wise``, the default as in mmseg and mmdet, or
              ``stage_wise``;
            - ``num_layers``: accepted because mmseg's and mmdet's constructors need
              it. The backbone knows its layers; where these are not
              ``num_layers + 2``, as they count, the log says so;
            - any key of mmengine's `DefaultOptimWrapperConstructor`, with the meaning
              that it has there. ``lr_mult`` of ``custom_keys`` multiplies the rate of
              the layer. As there, the longest key in a parameter's name is its only
              rule: without ``decay_mult`` a norm has the full weight decay too.
              ``dwconv_decay_mult`` includes this package's depthwise convolutions. A
              parameter that several modules share is trained once, with or without
              ``bypass_duplicate``.

    Raises:
        TypeError: If ``paramwise_cfg`` is no dict.
        ValueError: If a key of it is unknown or its value out of range, or the
            optimizer's config lacks the ``lr`` or ``weight_decay`` to multiply.
    """

    def __init__(
        self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None
    ) -> None:
        super().__init__(optim_wrapper_cfg, paramwise_cfg)

    def _validate_cfg(self) -> None:
        if not isinstance(self.paramwise_cfg, dict):
            raise TypeError(
                f'paramwise_cfg {self.paramwise_cfg!r} of {type(self).__name__} must '
                "be a dict such as dict(decay_rate=0.9, decay_type='layer_wise')"
            )
        cfg: dict[str, Any] = dict(self.paramwise_cfg)
        for key in cfg:
            if key not in KEYS:
                close = get_close_matches(str(key), KEYS, n=1)
                hint = f'did you mean {close[0]}? It' if close else 'it'
                self._refuse(key, f'is unknown; {hint} takes {", ".join(KEYS)}')
        rate: Any = cfg.get('decay_rate')
        if not _is_number(rate) or not 0 < rate <= 1:
            self._refuse('decay_rate', 'must be a number in (0, 1], such as 0.9')
        self.decay_rate: float = rate
        self.decay_type = cfg.get('decay_type', 'layer_wise')
        if self.decay_type not in DEPTH_METHODS:
            self._refuse('decay_type', f'must be {" or ".join(DEPTH_METHODS)}')
        self.num_layers = cfg.get('num_layers')
        if self.num_layers is not None and not (
            type(self.num_layers) is int and self.num_layers > 0
        ):
            self._refuse(
                'num_layers',
                'must be a positive integer; or leave it out: the backbone knows',
            )
        custom_keys = cfg.get('custom_keys', {})
        if not isinstance(custom_keys, dict):
            self._refuse('custom_keys', 'must be a dict from parts of names to dicts')
        multipliers = {key: cfg[key] for key in MULTIPLIERS if key in cfg}
        for key, custom in custom_keys.items():
            if not isinstance(custom, dict):
                self._refuse(
                    f'custom_keys[{key!r}]',
                    'must be a dict such as dict(lr_mult=0.1, decay_mult=0.0)',
                    custom,
                )
            for name in custom.keys() & {'lr_mult', 'decay_mult'}:
                multipliers[f'custom_keys[{key!r}].{name}'] = custom[name]
        if self.base_lr is None:
            raise ValueError(
                f'the optimizer {dict(self.optimizer_cfg)} has no lr to scale; set '
                'optim_wrapper.optimizer.lr'
            )
        for key, value in multipliers.items():
            if not _is_number(value):
                self._refuse(key, 'must be a number', value)
            if key.endswith('decay_mult') and self.base_wd is None:
                self._refuse(
                    key,
                    'has nothing to multiply: set optim_wrapper.optimizer.weight_decay',
                    value,
                )
        super()._validate_cfg()

    def _refuse(self, key: str, problem: str, value: Any = None) -> None:
        value = self.paramwise_cfg.get(key) if value is None else value
        raise ValueError(
            f'{key}={value!r} in paramwise_cfg of {type(self).__name__} {problem}'
        )

    def add_params(
        self,
        params: list[dict[str, Any]],
        module: nn.Module,
        prefix: str = '',
        is_dcn_module: int | float | None = None,
    ) -> None:
        """Group the trainable parameters of a model by layer, rate and weight decay.

        Args:
            params: The list that receives the groups.
            module: A model with one or more backbones of this package, or a backbone.
            prefix: Name of the module in mmengine's recursion, '' for the model.
            is_dcn_module: For mmengine's recursion.

        Raises:
            TypeError: If no backbone in the model tells its parameters' layers.
        """
        if prefix:
            super().add_params(params, module, prefix, is_dcn_module)
            return
        backbones = self._find_backbones(module)
        # mmengine's groups have one parameter each; of a shared one the first counts.
        found: list[dict[str, Any]] = []
        super().add_params(found, module)
        rules = {group.pop('params')[0]: group for group in reversed(found)}
        last = max(depth_of('')[1] for depth_of in backbones.values()) - 1
        groups: dict[str, dict[str, Any]] = {}
        for name, param in module.named_parameters():
            if not param.requires_grad:
                continue
            where = next((p for p in backbones if name.startswith(p)), None)
            layer, layers = (
                (last, last + 1) if where is None else backbones[where](name)
            )
            scale = self.decay_rate ** (layers - 1 - layer)
            rule = rules[param]
            self._decay_by_default(rule, name, module)
            rule['lr'] = scale * rule.get('lr', self.base_lr)
            # With several backbones, those of one layer may have different rates.
            of = where if where and len(backbones) > 1 else ''
            decays = 'no_decay' if rule.get('weight_decay') == 0 else 'decay'
            key = self._custom_key(name)
            suffix = '' if key is None else f'_{key}'
            rule['group_name'] = f'{of}layer_{layer}_{decays}{suffix}'
            rule['lr_scale'] = scale
            group = groups.setdefault(
                repr(sorted(rule.items())), dict(params=[], param_names=[], **rule)
            )
            group['params'].append(param)
            group['param_names'].append(name)
        self._report(groups.values(), backbones)
        params.extend(groups.values())

    def _find_backbones(self, model: nn.Module) -> dict[str, DepthOf]:
        """How each backbone tells a parameter's layer, by the prefix of its names."""
        method = DEPTH_METHODS[self.decay_type]
        names = [name for name, part in model.named_modules() if hasattr(part, method)]
        # A classifier of mmpretrain has the method too, and asks its backbone.
        inner = [
            name
            for name in names
            if not any(
                o != name and (not name or o.startswith(f'{name}.')) for o in names
            )
        ]
        if not inner:
            raise TypeError(
                f'{type(self).__name__} with decay_type {self.decay_type!r} needs a '
                f'backbone with {method}(), one of PeLK, SLaK and RepLKNet; '
                f'{type(model).__name__} with backbone '
                f'{type(getattr(model, "backbone", None)).__name__} has none. Leave '
                'constructor and paramwise_cfg out of optim_wrapper, or take the '
                "backbone's own constructor"
            )
        prefixes = {name: f'{name}.' if name else '' for name in inner}
        return {
            prefix: partial(getattr(model.get_submodule(name), method), prefix=prefix)
            for name, prefix in prefixes.items()
        }

    def _custom_key(self, name: str) -> str | None:
        """The key of ``custom_keys`` that mmengine takes for a parameter."""
        keys = sorted(self.paramwise_cfg.get('custom_keys', {}))
        dotted = name if '.' in name else f'.{name}'
        return max((key for key in keys if key in dotted), key=len, default=None)

    def _decay_by_default(
        self, rule: dict[str, Any], name: str, model: nn.Module
    ) -> None:
        """Complete mmengine's rule for a parameter by this package's own."""
        if self._custom_key(name) is not None:
            return
        parent, _, last = name.rpartition('.')
        mult = self.paramwise_cfg.get('dwconv_decay_mult')
        if (
            mult is not None
            and isinstance(
                model.get_submodule(parent), (DepthwiseConv2d, PeripheralConv2d)
            )
            and not (last == 'bias' and 'bias_decay_mult' in self.paramwise_cfg)
        ):
            rule['weight_decay'] = self.base_wd * mult
        elif model.get_parameter(name).ndim < 2 or last == 'position_embedding':
            rule.setdefault('weight_decay', 0.0)

    def _report(
        self, groups: Iterable[dict[str, Any]], backbones: dict[str, DepthOf]
    ) -> None:
        """Log the groups, and what of the config has no effect."""
        for group in sorted(groups, key=lambda group: group['group_name']):
            print_log(
                f'{group["group_name"]}: {len(group["params"])} parameters, lr '
                f'{group["lr"]:.3g}',
                logger='current',
            )
        names = [name for group in groups for name in group['param_names']]
        matched = {self._custom_key(name) for name in names}
        for key in self.paramwise_cfg.get('custom_keys', {}):
            if key not in matched:
                print_log(
                    f'custom_keys[{key!r}] is the rule for no trainable parameter',
                    logger='current',
                    level=logging.WARNING,
                )
        for prefix, depth_of in backbones.items():
            layers = depth_of('')[1]
            if self.num_layers not in (None, layers - 2):
                print_log(
                    f'num_layers={self.num_layers} has no effect: '
                    f'{prefix.rstrip(".") or "the backbone"} has {layers} layers, '
                    f'which mmseg would call num_layers={layers - 2}',
                    logger='current',
                    level=logging.WARNING,
                )
