"""Stop a segmenter at the start where its config does not fit its data."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from mmengine.dataset import InfiniteSampler
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import nn

from pelk_mm.checkpoints.files import first_line

from .config_edit import crop_sizes
from .random_state import preserve_random_state


class DataCheckError(ValueError):
    """A config that does not fit its data."""


def _heads(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Modules that classify pixels, by name, wherever the model has them."""
    for name, module in model.named_modules():
        parts = name.split('.')
        if (
            not {'decode_head', 'auxiliary_head'}.isdisjoint(parts)
            and isinstance(getattr(module, 'num_classes', None), int)
            # It tells boundaries, which it makes of the labels, from the rest.
            and type(module).__name__ != 'STDCHead'
        ):
            yield name.removeprefix('module.'), module


def _takes_any_label(head: Any) -> bool:
    """Whether a head's losses treat a label beyond its classes as none of them."""
    losses = getattr(head, 'loss_decode', None)
    losses = [losses] if not isinstance(losses, nn.ModuleList) else losses
    return all(getattr(loss, 'use_sigmoid', False) for loss in losses)


def _abridged(values: Sequence[Any]) -> str:
    """The first values of a list, separated by commas."""
    return ', '.join(map(str, values[:12])) + ', ...' * (len(values) > 12)


@HOOKS.register_module()
class SegDataCheckHook(Hook):
    """Check a segmenter against its data sets before it is trained or tested.

    What mmdet's ``NumClassCheckHook`` does for detectors, and what mmseg does not
    notice: heads with another number of classes than the data set train and are
    scored without an error. A label that no class has is found in the first images
    and then in any batch that contains it, before a GPU ends in an assertion that names
    nothing. Crop sizes that disagree are logged.

    Raises:
        DataCheckError: At the start, if the number of classes of a head is not that of
            the training, validation or test set, a set that is evaluated names no
            classes, or a loop over epochs has an endless sampler; at a batch, if it
            has a label beyond the classes.
    """

    priority = 'VERY_HIGH'

    #: Training images whose labels are looked at before the training: other hooks may
    #: compute a loss by then, as that of sparsity does for its masks.
    FIRST_IMAGES = 8

    def before_train(self, runner: Runner) -> None:
        """Check everything that a training needs, its validation included."""
        loop = runner.train_loop
        dataset = loop.dataloader.dataset
        self._check_classes(runner, 'train', dataset)
        if runner.val_loop is not None:
            self._check_classes(runner, 'val', runner.val_loop.dataloader.dataset)
        sampler = loop.dataloader.sampler
        if isinstance(loop, EpochBasedTrainLoop) and isinstance(
            sampler, InfiniteSampler
        ):
            raise DataCheckError(
                'EpochBasedTrainLoop would never end an epoch of InfiniteSampler; set '
                "train_dataloader.sampler=dict(type='DefaultSampler', shuffle=True)"
            )
        with preserve_random_state():
            for index in range(min(self.FIRST_IMAGES, len(dataset))):
                sample = self._load(runner, dataset, index)
                self._check_sample(runner, 'train', sample)
        sizes = crop_sizes(runner.cfg)
        if len(set(sizes.values())) > 1:
            listed = ', '.join(f'{place} {size}' for place, size in sizes.items())
            print_log(
                f'crop sizes differ: {listed}; pelk_mm.engine.set_crop_size sets all',
                logger='current',
                level=logging.WARNING,
            )

    def before_val(self, runner: Runner) -> None:
        """Check the validation set, also of `Runner.val` alone."""
        self._check_classes(runner, 'val', runner.val_loop.dataloader.dataset)

    def before_test(self, runner: Runner) -> None:
        """Check the test set."""
        self._check_classes(runner, 'test', runner.test_loop.dataloader.dataset)

    def _before_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        mode: str = 'train',
    ) -> None:
        """Check the labels of a batch of any of the three loops."""
        samples = (
            data_batch.get('data_samples') if isinstance(data_batch, dict) else None
        )
        for sample in samples or ():
            self._check_sample(runner, mode, sample)

    @staticmethod
    def _check_classes(runner: Runner, mode: str, dataset: Any) -> None:
        kind, classes = type(dataset).__name__, dataset.metainfo.get('classes')
        place = f'{mode}_dataloader.dataset'
        if classes is None:
            raise DataCheckError(
                f'the {kind} of {place} names no classes; set '
                f"{place}.metainfo=dict(classes=('first', 'second', ...))"
            )
        if isinstance(classes, str):
            raise DataCheckError(
                f'classes {classes!r} of {place} must be a tuple; a single class is '
                f'({classes!r},), with a comma'
            )
        for name, head in _heads(runner.model):
            # One channel separates two classes, which mmseg also calls one.
            binary = getattr(head, 'out_channels', None) == 1 and len(classes) <= 2
            if head.num_classes != len(classes) and not binary:
                raise DataCheckError(
                    f'{type(head).__name__} model.{name} has num_classes='
                    f'{head.num_classes}, the {kind} of {place} has {len(classes)} '
                    f'classes: {_abridged(classes)}. Set num_classes={len(classes)} '
                    'in every head (pelk_mm.engine.set_num_classes does), or the '
                    "data set's metainfo=dict(classes=...)"
                )

    @staticmethod
    def _load(runner: Runner, dataset: Any, index: int) -> Any:
        try:
            return dataset[index]['data_samples']
        except Exception as error:  # whatever a transform raises, without the file
            # MultiImageMixDataset, which mixes several, has no such function.
            find = getattr(dataset, 'get_data_info', None)
            info = find(index) if find else {}
            files = ' or '.join(
                str(info[key]) for key in ('img_path', 'seg_map_path') if info.get(key)
            )
            files = files or f'sample {index} of train_dataloader.dataset'
            raise DataCheckError(
                f'{files} cannot be loaded: {first_line(error)}; `pelk-mm '
                f'check_dataset {runner.cfg.filename or "CONFIG"}` names all such files'
            ) from error

    @staticmethod
    def _check_sample(runner: Runner, mode: str, sample: Any) -> None:
        truth = getattr(sample, 'gt_sem_seg', None)
        if truth is None or truth.data.is_floating_point():
            return
        present = torch.bincount(truth.data.flatten()).nonzero().flatten()
        for name, head in _heads(runner.model):
            if not _takes_any_label(head):
                count = head.num_classes
                ignored = getattr(head, 'ignore_index', 255)
                wrong = present[(present >= count) & (present != ignored)].tolist()
                if wrong:
                    raise DataCheckError(
                        f'label {_abridged(wrong)} in {sample.get("seg_map_path")}: '
                        f'model.{name} has the classes 0 to {count - 1} and ignores '
                        f'{ignored}. If label 0 means unlabelled and classes begin at '
                        f'1, set {mode}_dataloader.dataset.reduce_zero_label=True; '
                        'if the label means unlabelled, replace it by '
                        f'{ignored} in the files; otherwise name its class in metainfo'
                    )
