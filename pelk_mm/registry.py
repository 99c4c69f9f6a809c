"""The scope ``pelk_mm`` of mmengine's registry of models.

Each model is registered twice: in the root registry, where every framework finds it
under its plain name, and in this scope. A framework's own class of the same name, as
mmpretrain's RepLKNet, comes before the root's; ``type='pelk_mm.RepLKNet'`` means ours
in every framework.
"""

from typing import TypeVar

from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import Registry

#: Models that ``type='pelk_mm.Name'`` finds.
MODELS = Registry(
    'model', parent=ROOT_MODELS, scope='pelk_mm', locations=['pelk_mm.backbones']
)

T = TypeVar('T', bound=type)


def register_model(cls: T) -> T:
    """Register a class under its name, in mmengine's root registry and in our scope."""
    ROOT_MODELS.register_module(module=cls)
    MODELS.register_module(module=cls)
    return cls
