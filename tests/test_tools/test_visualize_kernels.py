import cv2
import pytest
import torch

import visualize_kernels as tool
from pelk_mm.analysis.open_backbone import random_backbone
from pelk_mm.backbones import PeLK

ARCH = dict(channels=[8, 16], depths=[1, 2], kernel_sizes=[9, 7], central_radius=1)
CONFIG = f"""
custom_imports = dict(imports=['pelk_mm'])
model = dict(
    type='Unknown',
    backbone=dict(
        type='PeLK',
        arch={ARCH!r},
        out_indices=(0, 1),
        init_cfg=dict(type='Pretrained', checkpoint='gone.pth'),
    ),
)
"""
FEW = ('--blocks', '1', '--channels', '1')


@pytest.fixture
def visualize(run_command, tmp_path):
    """Runs the tool in a folder with a config."""
    (tmp_path / 'narrow.py').write_text(CONFIG)

    return lambda *arguments: run_command(tool.main, 'visualize_kernels.py', *arguments)


@pytest.fixture
def drawn(monkeypatch):
    """Titles of the pages that were drawn."""
    from pelk_mm.analysis import kernel_pictures

    titles = []
    draw = kernel_pictures.draw_stage

    def keep(kernels, title, *args):
        titles.append(title)
        return draw(kernels, title, *args)

    monkeypatch.setattr(kernel_pictures, 'draw_stage', keep)
    return titles


def weights(tmp_path, deploy):
    backbone = random_backbone(dict(type='PeLK', arch=ARCH, out_indices=(0, 1)))
    if deploy:
        backbone.switch_to_deploy()
    state = {f'backbone.{k}': v for k, v in backbone.state_dict().items()}
    torch.save(dict(state_dict=state, meta={}), tmp_path / 'iter_1.pth')


@pytest.mark.parametrize('deploy', [False, True])
def test_pages_of_a_checkpoint(visualize, drawn, tmp_path, deploy):
    weights(tmp_path, deploy)
    result = visualize('narrow.py', 'iter_1.pth', '--out', 'a/b', '--pdf', *FEW)
    assert result.returncode == 0, result.stderr
    names = ['stage1.png', 'stage2.png', 'kernels.pdf']
    assert result.stdout.splitlines() == [f'a/b/{name}' for name in names]
    assert {path.name for path in (tmp_path / 'a/b').iterdir()} == set(names)
    for name in names[:2]:
        assert cv2.imread(str(tmp_path / 'a/b' / name)).std() > 10
    assert drawn == ['PeLK of narrow, iter_1.pth'] * 2


def test_random_weights_say_so(visualize, drawn, tmp_path):
    assert visualize('narrow.py', *FEW).returncode == 0
    assert drawn == ['PeLK of narrow, random weights'] * 2
    first = (tmp_path / 'kernels' / 'stage1.png').read_bytes()
    assert visualize('narrow.py', *FEW).returncode == 0
    assert (tmp_path / 'kernels' / 'stage1.png').read_bytes() == first


def test_named_architecture(visualize, drawn, monkeypatch):
    arch = dict(
        channels=[8] * 4, depths=[1] * 4, kernel_sizes=[9] * 4, central_radius=1
    )
    monkeypatch.setitem(PeLK.arch_settings, 'tiny-101', arch)
    result = visualize('--arch', 'pelk-tiny-101', *FEW)
    assert result.returncode == 0, result.stderr
    assert drawn == ['PeLK of pelk-tiny-101, random weights'] * 4


@pytest.mark.parametrize(
    ('arguments', 'code', 'message'),
    [
        ([], 2, 'give either a CONFIG or --arch'),
        (['narrow.py', '--arch', 'pelk-tiny'], 2, 'give either a CONFIG or --arch'),
        (['narrow.py', '--blocks', '0'], 2, '0 is not positive'),
        (['--arch', 'vit'], 1, "no architecture 'vit'; choose one of pelk-tiny, "),
        (['gone.py'], 1, 'config gone.py does not exist'),
        (['narrow.py', 'gone.pth'], 1, 'gone.pth does not exist'),
        (['narrow.py', 'other.pth'], 1, 'does not fit the backbone, a PeLK'),
        (['narrow.py', '--out', 'narrow.py'], 1, 'narrow.py cannot be made a folder'),
        (['other.py'], 1, 'has no backbone of PeLK, SLaK, RepLKNet'),
    ],
)
def test_bad_input_ends_in_one_line(visualize, tmp_path, arguments, code, message):
    torch.save(dict(state_dict={'a.weight': torch.ones(2, 2)}), tmp_path / 'other.pth')
    (tmp_path / 'other.py').write_text("model = dict(type='ResNet')\n")
    result = visualize(*arguments)
    assert result.returncode == code
    assert message in result.stderr.splitlines()[-1]
    assert 'Traceback' not in result.stderr
    assert not list(tmp_path.glob('**/*.png'))
