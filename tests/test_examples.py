"""The configs of configs/examples: what they share, and CamVid's own images."""

from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path

import cv2
import mmseg
import numpy as np
import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, init_default_scope
from mmengine.runner import Runner

from pelk_mm.engine.config_edit import crop_sizes
from pelk_mm.engine.dataset_check import check_dataset, count_levels, format_reports

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / 'configs' / 'examples'
#: Type and kernels of each backbone.
BACKBONES = {
    'upernet_pelk_narrow_camvid': ('PeLK', [51, 49, 47, 13]),
    'upernet_pelk_narrow_camvid_sparse': ('PeLK', [51, 49, 47, 13]),
    'upernet_slak_narrow_camvid': ('SLaK', [51, 49, 47, 13]),
    'upernet_replknet_narrow_camvid': ('RepLKNet', [31, 29, 27, 13]),
    'upernet_convnext7_narrow_camvid': ('SLaK', [7, 7, 7, 7]),
}
#: Backbones that are pre-trained too.
PRETRAINED = ('pelk_narrow_camvid', 'convnext7_narrow_camvid')
SPLITS = dict(train=367, val=101, test=233)
BASE = EXAMPLES / '_base_' / 'upernet_narrow_camvid.py'
CLASSES = Config.fromfile(BASE).classes


def load(name):
    cfg = Config.fromfile(EXAMPLES / f'{name}.py')
    init_default_scope(cfg.default_scope)
    return cfg


@pytest.fixture(params=BACKBONES)
def name(request):
    return request.param


@pytest.fixture
def cfg(name):
    return load(name)


@pytest.fixture
def camvid(shared):
    folder = shared / 'data' / 'camvid'
    if not folder.is_dir():
        pytest.skip(f'no CamVid: {folder} does not exist')
    return folder


def on_images(cfg, folder):
    for split in SPLITS:
        cfg[f'{split}_dataloader'].dataset.data_root = str(folder)
    return cfg


def test_every_example_is_tested():
    assert {path.stem for path in EXAMPLES.glob('*.py')} == {
        *BACKBONES,
        *(f'upernet_{name}_pretrained' for name in PRETRAINED),
        *(f'presence_{name}' for name in PRETRAINED),
    }


@pytest.mark.parametrize('name', PRETRAINED)
def test_segmenter_starts_from_the_same_backbone(name):
    scratch, segmenter, presence = (
        Config.fromfile(EXAMPLES / f'{stem}.py')
        for stem in (
            f'upernet_{name}',
            f'upernet_{name}_pretrained',
            f'presence_{name}',
        )
    )
    init = segmenter.model.backbone.pop('init_cfg')
    assert segmenter.pop('pretraining') == f'presence_{name}.py'
    narrow = scratch.model.backbone.pop('init_cfg')
    assert segmenter.to_dict() == scratch.to_dict()
    last = presence.train_cfg.max_iters
    assert init.checkpoint == f'work_dirs/presence_{name}/iter_{last}.pth'
    assert last % presence.default_hooks.checkpoint.interval == 0  # it is saved
    assert presence.param_scheduler[-1].end == last
    backbone = presence.model.backbone.to_dict()
    assert backbone.pop('out_indices') == [3]
    assert backbone.pop('init_cfg') == narrow == scratch.narrow_init
    assert backbone == {
        **scratch.model.backbone.to_dict(),
        'type': f'pelk_mm.{scratch.model.backbone.type}',
    }
    width = scratch.narrow.channels[-1]
    assert presence.model.neck.channels == presence.model.head.in_channels == width
    normalised = {key: scratch.model.data_preprocessor[key] for key in ('mean', 'std')}
    assert normalised == {
        key: presence.model.data_preprocessor[key] for key in ('mean', 'std')
    }


@pytest.mark.parametrize('split', ['train', 'val'])
def test_crops_show_some_classes_and_not_others(split, camvid, monkeypatch):
    """Otherwise there would be nothing to learn from which ones they show."""
    pytest.importorskip('mmpretrain', reason='needs mmpretrain and its torchvision')
    monkeypatch.setattr('gc.collect', lambda: 0)  # mmengine does for each data set
    cfg = on_images(load('presence_pelk_narrow_camvid'), camvid)
    dataset = DATASETS.build(cfg[f'{split}_dataloader'].dataset)
    assert len(dataset) == SPLITS[split]
    np.random.seed(0)
    samples = [dataset[i] for i in range(0, len(dataset), 4)]
    assert {tuple(each['inputs'].shape) for each in samples} == {(3, 128, 128)}
    present = torch.stack([each['data_samples'].gt_score for each in samples]).mean(0)
    assert 0.25 < present.mean() < 0.6
    assert present.max() < 1


def test_backbones_differ_in_their_kernels_alone(name, cfg):
    backbone = cfg.model.backbone.to_dict()
    arch = backbone['arch']
    assert (backbone['type'], arch['kernel_sizes']) == BACKBONES[name]
    base = Config.fromfile(BASE)
    assert {key: arch[key] for key in base.narrow} == base.narrow.to_dict()
    own, common = cfg.to_dict(), base.to_dict()
    hooks = own['default_hooks']
    assert ('sparsity' in hooks) == name.endswith('sparse')
    hooks.pop('sparsity', None)
    del own['model']['backbone']
    assert own == common


def test_control_is_convnexts_block():
    """7 x 7 with a bias, no norm of its own and no other branch."""
    cfg = load('upernet_convnext7_narrow_camvid')
    backbone = MODELS.build(cfg.model.backbone)
    for stage, width in zip(backbone.stages, cfg.narrow.channels, strict=True):
        for block in stage.blocks:
            shapes = {n: tuple(p.shape) for n, p in block.mixer.named_parameters()}
            assert sorted(shapes.values()) == [(width,), (width, 1, 7, 7)]


def test_changed_in_one_place(cfg):
    """Classes, crop and what label 0 means agree wherever mm reads them."""
    assert cfg.model.decode_head.num_classes == len(CLASSES) == len(cfg.palette) == 11
    assert len(cfg.model.decode_head.loss_decode.class_weight) == 11
    assert set(crop_sizes(cfg).values()) == {(240, 320)}
    for split in SPLITS:
        dataset = cfg[f'{split}_dataloader'].dataset
        assert dataset.type == 'BaseSegDataset'
        assert dataset.metainfo.classes == CLASSES
        assert dataset.reduce_zero_label is False
        assert dataset.data_prefix.img_path == f'img_dir/{split}'
    warmup, decay = cfg.param_scheduler
    assert warmup.end == decay.begin
    assert decay.end == cfg.train_cfg.max_iters
    assert cfg.default_hooks.checkpoint.interval == cfg.train_cfg.val_interval


def test_weights_of_two_bytes_fit_into_two_megabytes():
    cfg = load('upernet_pelk_narrow_camvid')
    values = [t.numel() for t in MODELS.build(cfg.model).state_dict().values()]
    # An entry of torch.save's archive takes some 250 bytes beside its values.
    assert 2 * sum(values) + 300 * len(values) < 2_000_000


def test_void_has_no_weight_and_no_gradient():
    """mmseg's own mean over weighted classes would look up the weight of 255."""
    base = Config.fromfile(BASE)
    init_default_scope(base.default_scope)
    loss = MODELS.build(base.model.decode_head.loss_decode)
    logits = torch.randn(2, 11, 4, 6, requires_grad=True)
    labels = torch.randint(0, 11, (2, 4, 6))
    labels[:, :2] = 255
    losses = loss(logits, labels, ignore_index=255)
    losses.mean().backward()
    weights = torch.tensor(base.class_weight)
    assert (logits.grad[:, :, :2] == 0).all()
    picked = logits.detach().log_softmax(1).gather(1, labels[:, None] % 11)[:, 0]
    expected = torch.where(labels < 11, -picked * weights[labels % 11], 0.0)
    torch.testing.assert_close(losses.detach(), expected)
    del base.model.decode_head.loss_decode['reduction']
    fault = pytest.raises(IndexError, match='255')
    with fault if mmseg.__version__ == '1.2.2' else nullcontext():  # the fork has none
        MODELS.build(base.model.decode_head.loss_decode)(
            logits, labels, ignore_index=255
        )


def test_class_weights_are_those_of_the_training_images(camvid):
    pixels = np.zeros(256, np.int64)
    for path in (camvid / 'ann_dir/train').glob('*.png'):
        pixels += np.bincount(cv2.imread(str(path), -1).ravel(), minlength=256)
    shares = pixels[:11] / pixels[:11].sum()
    weights = shares ** (-1 / 3) / (shares ** (2 / 3)).sum()
    assert Config.fromfile(BASE).class_weight == weights.round(1).tolist()


def test_data_sets_of_camvid(camvid, monkeypatch):
    monkeypatch.setattr('gc.collect', lambda: 0)  # mmengine does for each data set
    cfg = on_images(load('upernet_pelk_narrow_camvid'), camvid)
    for split, count in SPLITS.items():
        settings = deepcopy(cfg[f'{split}_dataloader'].dataset)
        dataset = DATASETS.build(settings)
        assert len(dataset) == count
        np.random.seed(0)
        sample = dataset[count // 2]
        labels = sample['data_samples'].gt_sem_seg.data
        assert set(labels.unique().tolist()) <= {*range(11), 255}
        shapes = tuple(sample['inputs'].shape[1:]), tuple(labels.shape[1:])
        if split == 'train':
            assert shapes == ((240, 320), (120, 160))
        else:
            assert shapes == ((360, 480), (360, 480))


@pytest.mark.slow
def test_check_finds_no_error_in_camvid(camvid):
    cfg = on_images(load('upernet_pelk_narrow_camvid'), camvid)
    reports = check_dataset(cfg, (), 0)
    assert count_levels(reports)[0] == 0, format_reports(reports)


#: What has the most in it; the others are trained too with `-m slow`.
TRAINED = 'upernet_pelk_narrow_camvid_sparse'


@pytest.mark.parametrize(
    'name',
    [
        pytest.param(n, marks=() if n == TRAINED else pytest.mark.slow)
        for n in BACKBONES
    ],
)
@pytest.mark.usefixtures('one_thread')
def test_iteration_on_camvid(name, camvid, tmp_path, monkeypatch):
    """At full size, with two images: the loss is finite and weights change."""
    monkeypatch.setattr(Config, 'pretty_text', '')
    monkeypatch.setattr('gc.collect', lambda: 0)  # mmengine does for each data set
    cfg = on_images(load(name), camvid)
    cfg.train_dataloader.batch_size = 2
    cfg.val_dataloader.dataset.indices = 1  # the last iteration is validated
    cfg.train_cfg.max_iters = 1
    cfg.default_hooks.logger.interval = 1
    cfg.work_dir, cfg.log_level = str(tmp_path), 'ERROR'
    cfg.experiment_name = cfg.visualizer.name = name
    runner = Runner.from_cfg(cfg)
    before = {n: p.detach().clone() for n, p in runner.model.named_parameters()}
    runner.train()
    loss = runner.message_hub.get_scalar('train/loss').current()
    # That of guessing, log(11), times weights of 1 on average, without void.
    assert 1 < loss < 4
    changed = [
        n for n, p in runner.model.named_parameters() if not torch.equal(p, before[n])
    ]
    assert len(changed) > 0.9 * len(before)


METAFILE = EXAMPLES / 'metafile.yml'
KEPT = yaml.safe_load(METAFILE.read_text())['Models'] if METAFILE.is_file() else []


@pytest.mark.slow
@pytest.mark.parametrize('model', KEPT, ids=lambda model: model['Name'])
def test_kept_weights_give_their_figure(model, camvid):
    from camvid_runs import build_model, score
    from camvid_weights import MOST_BYTES
    from pelk_mm.checkpoints.files import read_checkpoint

    path = ROOT / model['Weights']
    assert path.stat().st_size <= MOST_BYTES
    cfg = on_images(Config.fromfile(ROOT / model['Config']), camvid)
    scores, _ = score(build_model(cfg, read_checkpoint(path)['state_dict']), cfg)
    (result,) = model['Results']
    # Other processors and threads round differently.
    assert scores.mIoU == pytest.approx(result['Metrics']['mIoU'], abs=0.05)
