"""Change what a config repeats in several places, some of them in lists.

mmengine evaluates a base before the file that inherits it, and replaces lists as a
whole. So a variable such as ``num_classes`` at the top of a file changes nothing that a
base has made of its own, and an entry of a list cannot be named. These functions change
all the places in the base itself, from within the file that inherits it::

    _base_ = 'upernet_pelk_t_ade20k.py'

    edit = __import__('pelk_mm').engine
    edit.set_num_classes(_base_, 11)
    edit.set_crop_size(_base_, (320, 320))

An import statement would make mmengine take the file for its new style of configs,
which has no ``_base_``. A loaded ``Config`` can be changed in the same way.
"""

from collections.abc import Iterator
from typing import Any

from pelk_mm.config_types import entry, section, type_name

Size = tuple[int, int]


def _dicts(node: Any, skip: tuple[str, ...] = ()) -> Iterator[Any]:
    """Iterate over nested config dicts, not into the keys to skip."""
    if isinstance(node, dict):
        yield node
        node = [value for key, value in node.items() if key not in skip]
    if isinstance(node, (list, tuple)):
        for value in node:
            yield from _dicts(value, skip)


def _steps(cfg: Any, keys: tuple[str, ...], kind: str) -> list[Any]:
    """Transforms or hooks of one type in parts of a config, nested ones too."""
    parts = [cfg.get(key) for key in keys]
    return [step for step in _dicts(parts) if type_name(step.get('type')) == kind]


def _pair(value: Any, name: str) -> Size:
    pair = (value, value) if isinstance(value, int) else value
    if not isinstance(pair, (list, tuple)) or [
        type(side) is int and side > 0 for side in pair
    ] != [True, True]:
        raise ValueError(f'{name} {value!r} must be two positive integers')
    return tuple(pair)


def set_num_classes(cfg: Any, num_classes: int) -> None:
    """Set the number of classes of every head of a segmenter or detector.

    Args:
        cfg: A `Config`, or ``_base_`` in a config file; it is changed in place. Every
            ``num_classes`` in ``model`` is set, whether in a dict or a list, except
            in ``backbone`` and ``rpn_head``, which tell objects from background.
        num_classes: The number of classes, without the background of a detector.

    Raises:
        ValueError: If it is not a positive integer, if no head has ``num_classes``,
            or if one counts things and stuff apart, as panoptic heads do.
    """
    if type(num_classes) is not int or num_classes < 1:
        raise ValueError(f'num_classes {num_classes!r} must be a positive integer')
    parts = list(_dicts(cfg.get('model'), skip=('backbone', 'rpn_head')))
    apart = {key for part in parts for key in part} & {
        'num_things_classes',
        'num_stuff_classes',
    }
    if apart:
        raise ValueError(
            f'the model counts classes apart, in {" and ".join(sorted(apart))}: set '
            'these, and the weights of loss_cls, by hand'
        )
    heads = [part for part in parts if 'num_classes' in part]
    if not heads:
        raise ValueError('no head in model has num_classes; set it where the head is')
    for head in heads:
        # 1 means two classes in one channel.
        if head.get('out_channels') == head['num_classes'] != 1:
            head['out_channels'] = num_classes
        head['num_classes'] = num_classes


def set_crop_size(cfg: Any, crop_size: int | Size, scale: Size | None = None) -> None:
    """Set the size of a segmenter's crops wherever its config has it.

    That is ``RandomCrop`` in training and the size of a ``Pad`` there,
    ``data_preprocessor.size``, to which a batch is padded, and, where it tests by
    sliding, ``test_cfg.crop_size`` with a stride of the same share as before.

    Args:
        cfg: A `Config`, or ``_base_`` in a config file; it is changed in place.
        crop_size: (height, width), or one number for both.
        scale: (long side, short side) that images are resized to before they are
            cropped, in training times a random factor, and before they are tested;
            None leaves it.

    Raises:
        ValueError: If a size is not of positive integers, or the config is not that of
            a segmenter trained on crops.
    """
    size = _pair(crop_size, 'crop_size')
    scale = None if scale is None else _pair(scale, 'scale')
    preprocessor = section(cfg, 'model', 'data_preprocessor')
    train = ('train_dataloader', 'train_pipeline')
    crops = _steps(cfg, train, 'RandomCrop')
    if not crops or 'size' not in preprocessor:
        raise ValueError(
            'set_crop_size needs a segmenter with RandomCrop in train_dataloader and '
            'size in model.data_preprocessor'
        )
    for crop in crops:
        crop['crop_size'] = size
    for pad in _steps(cfg, train, 'Pad'):
        if 'size' in pad:
            pad['size'] = size[::-1]  # mmcv has the width first here
    preprocessor['size'] = size
    if 'crop_size' in cfg:
        cfg['crop_size'] = size
    test_cfg = section(cfg, 'model', 'test_cfg')
    if 'crop_size' in test_cfg:
        old, stride = test_cfg['crop_size'], test_cfg['stride']
        test_cfg['stride'] = tuple(
            max(1, step * new // before)
            for step, new, before in zip(stride, size, old, strict=True)
        )
        test_cfg['crop_size'] = size
    if scale is not None:
        test = ('val_dataloader', 'test_dataloader', 'test_pipeline')
        for step in _steps(cfg, train, 'RandomResize') + _steps(cfg, test, 'Resize'):
            if 'scale' in step:
                step['scale'] = scale
        if 'scale' in cfg:
            cfg['scale'] = scale


def _positive(value: Any, name: str) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f'{name} {value!r} must be a positive integer')
    return value


def set_max_epochs(cfg: Any, max_epochs: int) -> None:
    """Set the length of a training that counts epochs, and where its schedule ends.

    Args:
        cfg: A `Config`, or ``_base_`` in a config file; it is changed in place. Warm-up
            keeps its length; every entry of ``param_scheduler`` that ended with the
            training does so again.
        max_epochs: The number of epochs.

    Raises:
        ValueError: If it is not a positive integer, if the training counts no epochs,
            or if part of the schedule would begin after its end.
    """
    _positive(max_epochs, 'max_epochs')
    train_cfg = section(cfg, 'train_cfg')
    if 'max_epochs' not in train_cfg:
        raise ValueError('train_cfg has no max_epochs: the training counts iterations')
    before = train_cfg['max_epochs']
    for scheduler in _dicts(cfg.get('param_scheduler')):
        if scheduler.get('end') != before:
            continue
        if scheduler.get('begin', 0) >= max_epochs:
            raise ValueError(
                f'max_epochs {max_epochs} ends before {scheduler["type"]} of '
                f'param_scheduler begins, at epoch {scheduler["begin"]}'
            )
        scheduler['end'] = max_epochs
    train_cfg['max_epochs'] = max_epochs
    if 'max_epochs' in cfg:
        cfg['max_epochs'] = max_epochs


def set_accumulation(cfg: Any, accumulative_counts: int) -> None:
    """Set over how many iterations gradients are summed, and all that depends on it.

    That is the batch that ``auto_scale_lr`` compares with, which mmengine counts per
    iteration, so that the images of a step which the learning rate is meant for stay
    the same; and, where it followed the steps before, the interval of ``EMAHook``.

    Args:
        cfg: A `Config`, or ``_base_`` in a config file; it is changed in place.
        accumulative_counts: The number of iterations; 1 for no accumulation.

    Raises:
        ValueError: If it is not a positive integer, if there is no ``optim_wrapper``,
            or if the images of a step are no multiple of it.
    """
    new = _positive(accumulative_counts, 'accumulative_counts')
    wrapper = section(cfg, 'optim_wrapper')
    if not wrapper:
        raise ValueError('there is no optim_wrapper that would accumulate gradients')
    before = wrapper.get('accumulative_counts', 1)
    scale = section(cfg, 'auto_scale_lr')
    if 'base_batch_size' in scale:
        images = scale['base_batch_size'] * before
        if images % new:
            raise ValueError(
                f'accumulative_counts {new} does not divide the {images} images of a '
                'step that the learning rate is meant for'
            )
        scale['base_batch_size'] = images // new
    for hook in _steps(cfg, ('default_hooks', 'custom_hooks'), 'EMAHook'):
        if hook.get('interval', 1) == before:
            hook['interval'] = new
    wrapper['accumulative_counts'] = new
    if 'accumulative_counts' in cfg:
        cfg['accumulative_counts'] = new


def crop_sizes(cfg: Any) -> dict[str, Size]:
    """Sizes that `set_crop_size` would make equal, by their place in the config."""
    test_cfg = entry(cfg, 'model', 'test_cfg')
    sizes = {
        'crop_size': cfg.get('crop_size'),
        'model.data_preprocessor.size': entry(
            cfg, 'model', 'data_preprocessor', 'size'
        ),
        'model.test_cfg.crop_size': entry(test_cfg, 'crop_size')
        if entry(test_cfg, 'mode') == 'slide'
        else None,
    }
    for number, crop in enumerate(_steps(cfg, ('train_dataloader',), 'RandomCrop')):
        sizes[f'RandomCrop{f" {number}" * bool(number)}'] = crop.get('crop_size')
    return {
        place: _pair(size, place) for place, size in sizes.items() if size is not None
    }
