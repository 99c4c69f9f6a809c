import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

import pelk_mm  # noqa: F401

TOOL = 'tools/switch_to_deploy.py'
CONFIG = """
default_scope = 'mmseg'
custom_imports = dict(imports=['pelk_mm'], allow_failed_imports=False)
model = dict(
    type='EncoderDecoder',
    backbone=dict(type='SLaK', arch=dict(
        channels=(8, 8), depths=(1, 1), kernel_sizes=(13, 11)), out_indices=(0, 1)),
    decode_head=dict(
        type='FCNHead', in_channels=8, in_index=1, channels=8, num_classes=3
    ),
)
"""


def test_says_what_it_folded(run_tool, tmp_path):
    (tmp_path / 'config.py').write_text(CONFIG)
    cfg = Config.fromfile(tmp_path / 'config.py')
    init_default_scope('mmseg')
    torch.save(MODELS.build(cfg.model).state_dict(), tmp_path / 'trained.pth')

    result = run_tool(TOOL, 'config.py', 'trained.pth', 'deployed.pth')
    assert result.returncode == 0, result.stderr
    assert result.stderr == ''
    lines = result.stdout.splitlines()
    assert lines[0].startswith('SLaK: ')
    assert '6 BatchNorm2d folded' in result.stdout
    assert '2 DepthwiseConv2d folded' in result.stdout
    assert lines[-1] == (
        'deployed.pth loads with --cfg-options model.backbone.deploy=True'
    )
    assert (tmp_path / 'deployed.pth').is_file()


def test_error_is_one_sentence(run_tool):
    result = run_tool(TOOL, 'none.py', 'trained.pth', 'deployed.pth')
    assert result.returncode == 1
    assert result.stdout == ''
    assert result.stderr == 'switch_to_deploy.py: config none.py does not exist\n'
