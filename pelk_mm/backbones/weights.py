"""What a backbone checks before weights are loaded into it."""

from collections.abc import Mapping
from typing import Any

from mmengine.logging import print_log
from mmengine.model import PretrainedInit
from mmengine.registry import WEIGHT_INITIALIZERS
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.overrides import is_tensor_like

from pelk_mm.checkpoints.fit import WeightsError, require_fit
from pelk_mm.checkpoints.guard import require_loadable
from pelk_mm.checkpoints.misfit import Backbone

#: Attribute that mmengine gives modules as long as it initialises them.
_IN_INIT = '_params_init_info'


def before_loading(
    backbone: Any,
    state_dict: Mapping[str, Any],
    prefix: str,
    _metadata: Any,
    _strict: bool,
    _missing: list[str],
    unexpected: list[str],
    _errors: list[str],
) -> None:
    """Hook of a backbone that runs before it is loaded, by torch or by mmengine.

    The modules around it are loaded first: what they have no place for is among the
    unexpected names already.

    Raises:
        WeightsError: If a part of the backbone would stay at random.
    """
    if any(isinstance(part, FullyShardedDataParallel) for part in backbone.modules()):
        return  # each process has a part of the weights, under other names
    own = backbone.state_dict(keep_vars=True)
    weights = {
        name.removeprefix(prefix): tuple(v.shape) if is_tensor_like(v) else None
        for name, v in state_dict.items()
        if name.startswith(prefix)
    }
    description = Backbone(
        type(backbone).__name__,
        {name: tuple(tensor.shape) for name, tensor in own.items()},
        backbone.arch_settings,
        backbone.warm_start,
        backbone.has_weights,
        backbone.partial_weights,
    )
    fit = require_fit(description, weights, prefix, unexpected)
    if fit.note:
        print_log(f'{description.type} {fit.note}.', logger='current')
    backbone.has_weights |= fit.complete
    backbone.loaded_in_init = fit.complete and hasattr(backbone, _IN_INIT)


def before_init(backbone: Any) -> None:
    """Check the ``init_cfg`` of a backbone before it is carried out.

    mmengine loads checkpoints last if their type is spelled ``Pretrained``; so it is
    here, whatever the spelling.

    Raises:
        WeightsError: If its checkpoint has the released names or another prefix, or if
            weights that a module around it has loaded too early would be overwritten.
    """
    if backbone.loaded_in_init and hasattr(backbone, _IN_INIT):
        raise WeightsError(
            'the init_cfg of the model has loaded weights that the backbone would '
            "overwrite; write its type='Pretrained', the only spelling of which "
            'mmengine knows that it comes last'
        )
    backbone.has_weights = False
    init_cfg = backbone.init_cfg
    for cfg in init_cfg if isinstance(init_cfg, list) else [init_cfg]:
        kind = cfg and cfg['type']
        if isinstance(kind, str):
            kind = WEIGHT_INITIALIZERS.get(kind)
        if kind is PretrainedInit:
            cfg['type'] = 'Pretrained'
            name, checkpoint = type(backbone).__name__, cfg['checkpoint']
            require_loadable(checkpoint, name, backbone.warm_start, cfg.get('prefix'))
