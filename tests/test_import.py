"""What importing does where OpenMMLab's packages are, are not, or are in part."""

import subprocess
import sys

import pytest


def run(code, *blocked):
    """Run code in a process that finds none of the blocked modules."""
    block = f'import sys; sys.modules.update(dict.fromkeys({blocked!r}))\n'
    return subprocess.run(
        [sys.executable, '-c', block + code],
        capture_output=True,
        text=True,
        timeout=600,
    )


STACK = ('mmengine', 'mmcv', 'mmseg', 'mmdet')


def test_ops_need_torch_alone():
    result = run(
        'import torch, pelk_mm.ops\n'
        'x, weight = torch.ones(1, 2, 9, 9), torch.ones(2, 7, 7)\n'
        'print(pelk_mm.ops.depthwise_conv2d(x, weight)[0, 0, 4, 4].item())\n'
        'print(pelk_mm.__version__)',
        *STACK,
    )
    assert result.returncode == 0, result.stderr
    value, version = result.stdout.split()
    assert float(value) == pytest.approx(49)
    assert version.count('.') == 2
    assert 'mmengine' not in result.stderr  # without it nothing is amiss


@pytest.mark.parametrize(
    'code',
    [
        'import pelk_mm; pelk_mm.backbones',
        'from pelk_mm import engine',
        'from pelk_mm import layers',
    ],
)
def test_what_needs_mmengine_says_how_to_install_it(code):
    result = run(code, *STACK)
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith('ImportError: pelk_mm.')
    assert 'mmengine and mmcv cannot be found' in last
    assert 'pip install' in last


def test_half_a_stack_warns_that_nothing_is_registered():
    result = run('import pelk_mm', 'mmcv')
    assert result.returncode == 0
    assert 'UserWarning: no backbone is registered: mmcv cannot be found' in (
        result.stderr
    )


def test_registration():
    result = run(
        'from mmengine.registry import MODELS\n'
        'import pelk_mm\n'
        "names = ('PeLK', 'SLaK', 'RepLKNet')\n"
        'print([name in MODELS for name in names])\n'
        "print([MODELS.get(name) is MODELS.get(f'pelk_mm.{name}') for name in names])"
    )
    assert result.stdout == '[True, True, True]\n' * 2


def test_counters_of_others_are_not_loaded():
    result = run(
        'import sys, pelk_mm\n'
        "print({'mmengine.analysis', 'fvcore'} & sys.modules.keys())"
    )
    assert result.stdout == 'set()\n'


def test_unknown_attribute():
    result = run('import pelk_mm; print(hasattr(pelk_mm, "no_such"))', *STACK)
    assert result.stdout == 'False\n'
