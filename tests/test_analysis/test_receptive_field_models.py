import pytest
import torch
from mmengine.registry import MODELS

from pelk_mm.analysis import receptive_field_models
from pelk_mm.analysis.open_backbone import ARCHITECTURES
from pelk_mm.analysis.receptive_field_images import IMAGENET_MEAN, Preprocessing
from pelk_mm.analysis.receptive_field_models import (
    random_model,
    trained_model,
)
from pelk_mm.backbones import PeLK, RepLKNet, SLaK
from pelk_mm.checkpoints.rules import rename

ARCH = dict(channels=[8, 8, 12, 12], depths=[1, 1, 1, 1], kernel_sizes=[11, 9, 7, 5])
NARROW = {
    'pelk-narrow': (PeLK, dict(ARCH, central_radius=2)),
    'slak-narrow': (SLaK, ARCH),
    'replknet-narrow': (RepLKNet, ARCH),
}
CONFIG = """
default_scope = 'mmseg'
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor', mean=[1, 2, 3], std=[4, 5, 6], bgr_to_rgb={rgb}
    ),
    backbone=dict({backbone}),
    decode_head=dict(type='NoSuchHead'),
)
"""
SLAK = f"type='SLaK', arch={ARCH!r}"


@pytest.fixture(autouse=True)
def _narrow(monkeypatch):
    for name, entry in NARROW.items():
        monkeypatch.setitem(ARCHITECTURES, name, entry)


@pytest.fixture
def write(tmp_path):
    """Writes a config and returns its path."""

    def make(backbone=SLAK, rgb=True):
        path = tmp_path / 'config.py'
        path.write_text(CONFIG.format(backbone=backbone, rgb=rgb))
        return str(path)

    return make


@pytest.fixture
def save(tmp_path):
    """Saves weights and returns the file's path."""

    def make(state, **content):
        path = tmp_path / 'weights.pth'
        torch.save({'state_dict': state, **content}, path)
        return str(path)

    return make


@pytest.mark.parametrize('name', NARROW)
def test_random_weights_are_the_seeds(name, capfd):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    models = [random_model(name, seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.rand(1), expected)  # nobody else's numbers are used up
    states = [model.backbone.state_dict() for model in models]
    same = [
        [torch.equal(a, b) for a, b in zip(states[0].values(), other.values())]  # noqa: B905
        for other in states[1:]
    ]
    assert all(same[0])
    assert not all(same[1])
    assert models[2].weights == 'random weights, seed 1'
    assert capfd.readouterr() == ('', '')


def test_layer_scale():
    model = random_model('slak-narrow', layer_scale=0.5)
    assert model.weights == 'random weights, seed 0, layer scale 0.5'
    assert (model.backbone.stages[0].blocks[0].gamma == 0.5).all()
    other = random_model('replknet-narrow', layer_scale=0.5)
    assert other.weights == 'random weights, seed 0'


def test_pixels_of_xl(monkeypatch):
    """RepLKNet-XL was trained with other pixels than all other models."""
    monkeypatch.setattr(receptive_field_models, 'random_backbone', lambda *_: None)
    assert random_model('replknet-XL').preprocess.mean == (127.5,) * 3
    assert random_model('replknet-31B').preprocess.mean == IMAGENET_MEAN


@pytest.mark.parametrize('prefix', ['', 'backbone.', 'student.backbone.'])
def test_weights_of_a_backbone_or_of_a_whole_model(write, save, prefix):
    state = SLaK(ARCH).state_dict()
    path = save({f'{prefix}{name}': value for name, value in state.items()})
    model = trained_model(write(), path)
    assert model.name == 'config'
    assert model.weights == 'weights.pth'
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, state[name])


def test_weights_by_the_name_of_an_architecture(save):
    path = save(SLaK(ARCH).state_dict())
    model = trained_model('SLaK-Narrow', path)
    assert model.name == 'slak-narrow'
    assert model.preprocess == Preprocessing()


@pytest.mark.parametrize('rgb', [True, False])
def test_pixels_of_the_config(write, save, rgb):
    path = save(SLaK(ARCH).state_dict())
    preprocess = trained_model(write(rgb=rgb), path).preprocess
    assert preprocess == Preprocessing(3, rgb, (1, 2, 3), (4, 5, 6))


RESNET = "type='mmseg.ResNet', depth=18, base_channels=8, stem_channels=8"


def test_other_backbones(write, save):
    config = write(f"{RESNET}, init_cfg=dict(type='Pretrained', checkpoint='gone')")
    backbone = MODELS.build(eval(f'dict({RESNET})'))  # noqa: S307
    state = {f'backbone.{k}': v for k, v in backbone.state_dict().items()}
    model = trained_model(config, save(state))
    assert torch.equal(model.backbone.conv1.weight, backbone.conv1.weight)
    del state['backbone.conv1.weight'], state['backbone.bn1.num_batches_tracked']
    with pytest.raises(
        ValueError, match=r'weights\.pth: lacks 1 tensors .* conv1.weig'
    ):
        trained_model(config, save(state))
    state['backbone.conv1.weight'] = torch.ones(2, 3, 7, 7)
    with pytest.raises(ValueError, match='does not fit the backbone: size mismatch'):
        trained_model(config, save(state))


def test_images_of_other_channels(write, save):
    for channels in (1, 4):
        path = save(SLaK(ARCH, in_channels=channels).state_dict())
        config = write(f'{SLAK}, in_channels={channels}')
        if channels == 1:
            assert trained_model(config, path).preprocess.channels == 1
        else:
            with pytest.raises(ValueError, match='takes images of 4 channels'):
                trained_model(config, path)


def test_weights_that_do_not_fit(write, save):
    state = SLaK(ARCH).state_dict()
    config = write()
    wide = SLaK(dict(ARCH, channels=[16, 16, 24, 24])).state_dict()
    with pytest.raises(ValueError, match=r'weights\.pth: the checkpoint does not fit'):
        trained_model(config, save(wide))
    released = {rename(name, 'slak', to_released=True): v for name, v in state.items()}
    with pytest.raises(ValueError, match='pelk-mm convert_checkpoint SRC DST'):
        trained_model(config, save(released))
    with pytest.raises(
        ValueError, match=r'weights\.pth: .*its names, head\.weight, are'
    ):
        trained_model(config, save({'head.weight': torch.ones(2, 2)}))
    state['stages.0.blocks.0.gamma'][0] = float('nan')
    with pytest.raises(ValueError, match=r'weights\.pth: 1 of its tensors hold NaN'):
        trained_model(config, save(state))
    with pytest.raises(ValueError, match=r'gone\.pth does not exist'):
        trained_model(config, 'gone.pth')


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('model = dict(type="X")', 'has no model with a backbone'),
        ('a = 1', 'has no model with a backbone'),
        ('model = dict(backbone=dict(type="NoSuchNet"))', 'cannot be built: .*NoSuch'),
        (
            'model = dict(backbone=dict(type="SLaK", arch="huge"))',
            "arch 'huge' of SLaK",
        ),
        ('model =', 'cannot be read'),
    ],
)
def test_bad_configs(tmp_path, save, text, message):
    (tmp_path / 'bad.py').write_text(text)
    with pytest.raises(ValueError, match=message):
        trained_model(str(tmp_path / 'bad.py'), save({}))
