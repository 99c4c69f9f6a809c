"""Odd files of a segmenter's data set: each is named, with what to do."""

import json
import os
import shutil

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from pelk_mm.engine.dataset_check import (
    KINDS,
    as_json,
    check_dataset,
    count_levels,
    format_reports,
)
from pelk_mm.engine.dataset_check.findings import Finding
from pelk_mm.engine.dataset_check.splits import data_set_configs
from pelk_mm.engine.launch import LaunchError

LOADS = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]


def loader(split, **changes):
    return dict(
        dataset=dict(
            type='BaseSegDataset',
            data_root='data',
            metainfo=dict(classes=('ground', 'sky', 'boat')),
            data_prefix=dict(img_path=f'{split}/img', seg_map_path=f'{split}/ann'),
            pipeline=[
                *LOADS,
                dict(type='RandomCrop', crop_size=(48, 48)),
                dict(type='PackSegInputs'),
            ],
            **changes,
        )
    )


@pytest.fixture(autouse=True)
def _no_collection(monkeypatch):
    """mmengine collects garbage for each data set, longer than it takes to read it."""
    monkeypatch.setattr('gc.collect', lambda: 0)


@pytest.fixture
def cfg():
    """A config of three classes and crops of 48 x 48."""
    return Config(
        dict(
            default_scope='mmseg',
            model=dict(
                data_preprocessor=dict(),
                backbone=dict(type='PeLK'),
                decode_head=dict(num_classes=3),
            ),
            train_dataloader=loader('train'),
            val_dataloader=loader('val'),
        )
    )


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A folder of two sound images in each split, and the current one."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for split in ('train', 'val'):
        for kind in ('img', 'ann'):
            (tmp_path / 'data' / split / kind).mkdir(parents=True)
        for number in range(2):
            save(
                tmp_path / 'data' / split,
                str(number),
                rng.integers(0, 256, (60, 70, 3)),
            )
    return tmp_path / 'data'


def save(folder, name, image, labels=None, suffix='.jpg', **options):
    """Save an image, and a label map of all classes or the one that is given."""
    image = np.asarray(image, np.uint8)
    Image.fromarray(image).save(folder / 'img' / f'{name}{suffix}', **options)
    if labels is None:
        height, width = image.shape[:2]
        labels = np.arange(height * width).reshape(height, width) % 3
    Image.fromarray(np.asarray(labels, np.uint8)).save(folder / 'ann' / f'{name}.png')


def found(reports, split='train'):
    (report,) = [report for report in reports if report.name == split]
    return {finding.kind: str(finding) for finding in report.findings}


def test_sound_data_has_no_findings(cfg, data):
    reports = check_dataset(cfg)
    assert [report.name for report in reports] == ['train', 'val']
    assert count_levels(reports) == (0, 0)
    train = reports[0]
    assert (train.images, train.unit, train.ignored) == (2, 'pixels', 0)
    assert dict(train.counts) == dict.fromkeys(('ground', 'sky', 'boat'), 2800)
    assert dict(train.images_with) == dict.fromkeys(('ground', 'sky', 'boat'), 2)
    assert train.sizes == [(70, 60), (70, 60)]
    text = format_reports(reports)
    assert '| sky    |    2800 | 33.33% |      2 |' in text
    assert text.endswith('0 errors, 0 warnings')


NOISE = np.random.default_rng(1).integers(0, 256, (60, 70, 3), np.uint8)


def truncated(folder):
    save(folder, 'odd', NOISE)
    path = folder / 'img/odd.jpg'
    path.write_bytes(path.read_bytes()[:1500])
    assert cv2.imread(str(path)) is not None  # mm would train on it


def zero_byte(folder):
    save(folder, 'odd', NOISE)
    (folder / 'img/odd.jpg').write_bytes(b'')


def no_image(folder):
    save(folder, 'odd', NOISE)
    (folder / 'img/odd.jpg').write_bytes(b'hello')


def pointer(folder):
    save(folder, 'odd', NOISE)
    (folder / 'img/odd.jpg').write_bytes(
        b'version https://git-lfs.github.com/spec/v1\n'
    )


def no_labels(folder):
    save(folder, 'odd', NOISE)
    (folder / 'ann/odd.png').unlink()


def empty_labels(folder):
    save(folder, 'odd', NOISE)
    (folder / 'ann/odd.png').write_bytes(b'')


def truncated_labels(folder):
    save(folder, 'odd', NOISE, NOISE[..., 0] % 3)
    path = folder / 'ann/odd.png'
    path.write_bytes(path.read_bytes()[:-300])


def other_size(folder):
    save(folder, 'odd', NOISE, np.zeros((60, 60)))


def turned(folder):
    exif = Image.Exif()
    exif[274] = 6
    save(folder, 'odd', NOISE, exif=exif)


def upside_down(folder):
    exif = Image.Exif()
    exif[274] = 3
    save(folder, 'odd', NOISE, exif=exif)


def label_beyond(folder):
    labels = np.zeros((60, 70))
    labels[0, :7] = 3
    save(folder, 'odd', NOISE, labels)


def all_ignored(folder):
    save(folder, 'odd', NOISE, np.full((60, 70), 255))


def colour_labels(folder):
    save(folder, 'odd', NOISE, NOISE)


def wide_labels(folder):
    save(folder, 'odd', NOISE)
    cv2.imwrite(str(folder / 'ann/odd.png'), np.full((60, 70), 300, np.uint16))


def one_pixel(folder):
    save(folder, 'odd', NOISE[:1, :1])


def thin(folder):
    save(folder, 'odd', np.resize(NOISE, (31, 2000, 3)))


def transparent(folder):
    save(folder, 'odd', np.dstack([NOISE, NOISE[..., 0]]), suffix='.png')
    (folder / 'img/odd.png').rename(folder / 'img/odd.jpg')


def dark(folder):
    save(folder, 'odd', NOISE)
    cv2.imwrite(str(folder / 'img/odd.png'), NOISE.astype(np.uint16) * 8)
    (folder / 'img/odd.png').rename(folder / 'img/odd.jpg')


def sixteen_bits(folder):
    save(folder, 'odd', NOISE)
    cv2.imwrite(str(folder / 'img/odd.png'), NOISE.astype(np.uint16) * 257)
    (folder / 'img/odd.png').rename(folder / 'img/odd.jpg')


def fractions(folder):
    save(folder, 'odd', NOISE)
    cv2.imwrite(str(folder / 'img/odd.tif'), NOISE[..., 0].astype(np.float32) / 255)
    (folder / 'img/odd.tif').rename(folder / 'img/odd.jpg')


def unread(folder):
    save(folder, 'odd', NOISE, suffix='.JPEG')


def twice(folder):
    for kind, suffix in (('img', '.jpg'), ('ann', '.png')):
        shutil.copy(folder / kind / f'0{suffix}', folder / kind / f'odd{suffix}')


def in_both_splits(folder):
    for kind, suffix in (('img', '.jpg'), ('ann', '.png')):
        source = folder.parent / 'val' / kind
        shutil.copy(source / f'0{suffix}', folder / kind / f'odd{suffix}')


@pytest.mark.parametrize(
    ('make', 'kind', 'detail'),
    [
        (truncated, 'image_truncated', 'img/odd.jpg: image file is truncated'),
        (zero_byte, 'image_unreadable', 'img/odd.jpg: is empty (0 bytes)'),
        (no_image, 'image_unreadable', 'img/odd.jpg: mmcv cannot decode it'),
        (pointer, 'image_unreadable', 'run `git lfs pull`'),
        (no_labels, 'labels_missing', 'ann/odd.png'),
        (empty_labels, 'labels_unreadable', 'ann/odd.png: is empty'),
        (truncated_labels, 'labels_unreadable', 'ann/odd.png: '),
        (other_size, 'labels_size', 'odd.png: 60 x 60, the image 70 x 60 (W x H)'),
        (turned, 'labels_size', '60 x 70 (W x H) after its EXIF data has turned it'),
        (upside_down, 'turned', 'img/odd.jpg: orientation 3'),
        (label_beyond, 'labels_range', 'label 3 (7 pixels); the classes are 0 to 2'),
        (all_ignored, 'labels_ignored', 'ann/odd.png'),
        (colour_labels, 'labels_form', 'ann/odd.png: 3 channels'),
        (wide_labels, 'labels_form', 'values up to 300, cut off at 255'),
        (one_pixel, 'labels_form', 'a side of 1 pixel'),
        (one_pixel, 'smaller_than_crop', 'odd.jpg: 1 x 1 (W x H)'),
        (thin, 'long', 'odd.jpg: 2000 x 31 (W x H)'),
        (transparent, 'transparent', 'img/odd.jpg'),
        (dark, 'depth', 'nearly black: at most 7 of 255'),
        (sixteen_bits, 'sixteen_bits', 'img/odd.jpg'),
        (fractions, 'image_unreadable', 'F of 32 bits per value'),
        (unread, 'unread_files', 'img/odd.JPEG'),
        (twice, 'duplicate', 'odd.jpg: the same bytes as data/train/img/0.jpg'),
    ],
)
def test_odd_file(cfg, data, make, kind, detail):
    make(data / 'train')
    reports = check_dataset(cfg, ['train'])
    findings = found(reports)
    assert detail in findings[kind]
    assert 'odd' in findings[kind]
    assert count_levels(reports)[KINDS[kind].level == 'warning']
    if KINDS[kind].level == 'warning' and make is not one_pixel:
        assert count_levels(reports)[0] == 0
    assert f'**{KINDS[kind].level}**: {KINDS[kind].title}' in format_reports(reports)


def test_grey_images_become_three_channels(cfg, data):
    save(data / 'train', 'grey', NOISE[..., 0])
    assert count_levels(check_dataset(cfg)) == (0, 0)
    cfg.train_dataloader.dataset.pipeline[0].color_type = 'unchanged'
    detail = found(check_dataset(cfg))['channels']
    assert detail == 'data/train/img/grey.jpg: loaded as 1 channel, not 3'


def test_image_of_two_splits(cfg, data):
    in_both_splits(data / 'train')
    detail = found(check_dataset(cfg), 'val')['leak']
    assert detail == (
        'data/val/img/0.jpg: the same bytes as data/train/img/odd.jpg of train'
    )


def test_same_pixels_in_other_bytes(cfg, data):
    image = cv2.imread(str(data / 'val/img/1.jpg'))[..., ::-1]
    save(data / 'train', 'copy', image, suffix='.png')
    (data / 'train/img/copy.png').rename(data / 'train/img/copy.jpg')
    assert 'the same pixels as' in found(check_dataset(cfg), 'val')['leak']


def test_zero_label_is_reduced_as_in_training(cfg, data):
    cfg.train_dataloader.dataset.reduce_zero_label = True
    report = check_dataset(cfg, ['train'])[0]
    assert (report.ignored, report.counts['boat']) == (2800, 0)
    assert "1 of 3: 'boat'" in found([report])['never']


def test_set_without_annotations(cfg, data):
    shutil.rmtree(data / 'val/ann')
    assert 'labels_missing' in found(check_dataset(cfg), 'val')
    del cfg.val_dataloader.dataset.pipeline[1]
    assert found(check_dataset(cfg), 'val') == {}


def test_what_no_check_has_foreseen_is_reported_with_the_file(cfg, data, monkeypatch):
    from pelk_mm.engine.dataset_check import reading

    monkeypatch.setattr(reading.np, 'bincount', lambda labels: 1 / 0)
    detail = found(check_dataset(cfg))['annotation']
    assert detail == 'data/train/img/1.jpg: ZeroDivisionError: division by zero'


def test_small_images_of_a_test(cfg, data):
    save(data / 'val', 'tile', NOISE[:20, :24])
    assert (
        '24 x 20 (W x H), tested at 24 x 20'
        in found(check_dataset(cfg), 'val')['too_small']
    )
    step = dict(type='Resize', scale=(480, 360), keep_ratio=True)
    cfg.val_dataloader.dataset.pipeline.insert(1, step)
    assert 'too_small' not in found(check_dataset(cfg), 'val')
    del cfg.val_dataloader.dataset.pipeline[1]
    cfg.model.data_preprocessor.test_cfg = dict(size_divisor=32)
    assert 'too_small' not in found(check_dataset(cfg), 'val')


def test_classes_that_disagree(cfg, data):
    cfg.model.decode_head.num_classes = 150
    detail = '3 classes, a head has num_classes=150'
    assert detail in found(check_dataset(cfg))['classes']
    cfg.model.decode_head.num_classes = 3
    cfg.train_dataloader.dataset.metainfo.classes = 'boat'
    assert 'needs a comma' in found(check_dataset(cfg))['classes']
    del cfg.train_dataloader.dataset['metainfo']
    assert 'names no classes' in found(check_dataset(cfg))['classes']


@pytest.mark.parametrize(
    ('changes', 'kind', 'detail'),
    [
        (dict(img_suffix='.bmp'), 'dataset', "ends in '.bmp'; set img_suffix"),
        (dict(data_prefix=dict(img_path='no')), 'dataset', 'data/no'),
        (dict(ann_file='no.txt'), 'dataset', 'no.txt'),
        (dict(type='NoSuchDataset'), 'dataset', 'NoSuchDataset'),
        (dict(pipeline=[]), 'dataset', 'no step whose name begins with Load'),
    ],
)
def test_data_set_that_cannot_be_opened(cfg, data, changes, kind, detail):
    cfg.train_dataloader.dataset.update(changes)
    reports = check_dataset(cfg)
    assert detail in found(reports)[kind]
    assert '\n' not in found(reports)[kind]
    assert reports[1].images == 2  # the other split is read all the same


def test_image_of_a_list_is_missing(cfg, data):
    (data / 'list.txt').write_text('0\nnone\n')
    cfg.train_dataloader.dataset.ann_file = 'list.txt'
    assert found(check_dataset(cfg))['image_missing'] == 'data/train/img/none.jpg'


def test_wrapped_data_sets(cfg, data):
    inner = cfg.train_dataloader.dataset
    second = {**loader('val')['dataset'], 'data_prefix': dict(img_path='none')}
    both = dict(type='ConcatDataset', datasets=[inner, second])
    cfg.train_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=both)
    place = 'train_dataloader.dataset.dataset.datasets'
    configs = data_set_configs(cfg.train_dataloader.dataset, 'train_dataloader.dataset')
    assert [each[0] for each in configs] == [f'{place}[0]', f'{place}[1]']
    report = check_dataset(cfg, ['train'])[0]
    assert (report.images, report.kinds) == (2, ['BaseSegDataset'] * 2)
    assert found([report])['dataset'].startswith(f'{place}[1]: ')


def test_configs_that_cannot_be_checked(cfg, data):
    with pytest.raises(LaunchError, match='no test_dataloader'):
        check_dataset(cfg, ['test'])
    cfg.train_dataloader.dataset.data_root = 'nowhere'
    with pytest.raises(LaunchError, match="data_root 'nowhere' of train_dataloader"):
        check_dataset(cfg)


def test_split_that_is_another_is_read_once(cfg, data):
    cfg.test_dataloader = cfg.val_dataloader
    reports = check_dataset(cfg)
    assert [report.same_as for report in reports] == ['', '', 'val']
    assert '## test: the data set of val' in format_reports(reports)


def test_long_lists_are_cut_and_json_has_all(cfg, data):
    for number in range(5):
        (data / f'train/img/x{number}.jpg').touch()
    reports = check_dataset(cfg, ['train'])
    text = format_reports(reports, shown=2)
    assert 'image cannot be read (5 times)' in text
    assert '- and 3 more; --json FILE has all' in text
    findings = json.loads(json.dumps(as_json(reports)))['splits']['train']['findings']
    assert sum(finding['kind'] == 'image_unreadable' for finding in findings) == 5


def test_file_that_kills_its_reader_is_named(cfg, data, monkeypatch):
    from pelk_mm.engine.dataset_check import reading

    decode = reading.decode_whole

    def crash(content):
        return os._exit(9) if content == b'crash' else decode(content)

    monkeypatch.setattr(reading, 'decode_whole', crash)
    save(data / 'train', 'odd', NOISE)
    (data / 'train/img/odd.jpg').write_bytes(b'crash')
    reports = check_dataset(cfg, ['train'], workers=2)
    assert found(reports)['reader_died'] == 'data/train/img/odd.jpg'
    assert reports[0].images == 3
    assert reports[0].images_with['sky'] == 2


def test_kinds_are_phrased():
    for kind, (level, title, remedy) in KINDS.items():
        assert level in ('error', 'warning')
        assert not title.endswith('.')
        assert not remedy.endswith('.')
        assert Finding(kind, 'x').level == level
