"""The command line; what it exports is in test_conversion."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch

from pelk_mm.conversion.factored import Convolutions
from pelk_mm.conversion.onnx_export import OnnxReport
from pelk_mm.conversion.onnx_file import Check

ROOT = Path(__file__).parents[2]
DEMO = ROOT / 'configs/demo/upernet_pelk_narrow_drawn_scenes.py'


@pytest.fixture(scope='module')
def tool():
    spec = spec_from_file_location('export_onnx', ROOT / 'tools/export_onnx.py')
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def export(tool, monkeypatch, capsys):
    """Runs the tool in this process; returns its exit code and what it printed."""

    def run(*arguments):
        monkeypatch.setattr('sys.argv', ['export_onnx', *map(str, arguments)])
        code = 0
        try:
            tool.main()
        except SystemExit as end:
            code = end.code
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['a.py', 'a.onnx'], 'give CONFIG, CHECKPOINT and OUT.onnx, or PROGRAM.pt2'),
        (['a.pt2'], 'give PROGRAM.pt2 and OUT.onnx'),
        (['a.pt2', 'a.onnx', '--dynamic'], '--dynamic is for a config: a program is'),
        (['a.py', 'a.pth', 'a.onnx', '--shape', '64'], 'expected 2 arguments'),
    ],
)
def test_wrong_command_line(export, arguments, message):
    code, printed, error = export(*arguments)
    assert code == 2
    assert printed == ''
    assert message in error.splitlines()[-1]


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['./none.py', 'a.pth', 'a.onnx'], 'config ./none.py does not exist'),
        ([DEMO, 'none.pth', 'a.onnx'], 'none.pth does not exist'),
        ([DEMO, 'none.pth', 'a.pth'], 'a.pth does not end in .onnx'),
        (['none.pt2', 'a.onnx'], 'program none.pt2 does not exist'),
    ],
)
def test_error_is_one_sentence(export, tmp_path, monkeypatch, arguments, message):
    pytest.importorskip('onnxscript')
    pytest.importorskip('mmseg')
    monkeypatch.chdir(tmp_path)
    code, printed, _ = export(*arguments)
    assert code.startswith(f'export_onnx: {message}')
    assert '\n' not in code
    assert printed == ''
    assert list(tmp_path.iterdir()) == []


def test_says_what_it_wrote(export, monkeypatch):
    asked = {}

    def stand_in(cfg, checkpoint, out, shape, **options):
        asked.update(options, shape=shape)
        return OnnxReport(
            {'images': ['batch', 3, 'height', 'width']},
            {'logits': ['batch', 5, 'height', 'width']},
            Convolutions([51, 49, 51], [(13, 13)]),
            [Check(((1, 3, 64, 96),), 2e-6, 1e-6)],
        )

    monkeypatch.setattr('pelk_mm.conversion.onnx_export.export_onnx', stand_in)
    code, printed, _ = export(DEMO, 'a.pth', 'a.onnx', '--factored', '--fp16')
    assert code == 0
    assert asked.pop('shape') == (128, 128)  # that of the config
    assert {name for name, value in asked.items() if value} == {'factored', 'half'}
    assert printed.splitlines() == [
        'takes images: batch x 3 x height x width',
        'gives logits: batch x 5 x height x width',
        '3 convolutions as box sums, kernels of 51, 49; 1 are dense',
        'onnxruntime on 1 x 3 x 64 x 96: largest difference 2.0e-06, '
        '1.0e-06 of the largest value',
        'a.onnx is written',
    ]


@pytest.mark.parametrize(('name', 'shape'), [('pelk_t', (512, 512))])
def test_window_of_a_sliding_test(export, monkeypatch, name, shape):
    asked = {}

    def stand_in(cfg, checkpoint, out, shape, **options):
        asked['shape'] = shape
        raise ValueError('enough')

    monkeypatch.setattr('pelk_mm.conversion.onnx_export.export_onnx', stand_in)
    export(ROOT / f'configs/upernet_{name}_ade20k.py', 'a.pth', 'a.onnx')
    assert asked == dict(shape=shape)


@pytest.mark.slow
def test_demonstration_model(export, tmp_path):
    """The real thing, from the command line on."""
    from mmengine.registry import MODELS, init_default_scope

    from pelk_mm.config_types import read_config

    pytest.importorskip('onnxscript')
    pytest.importorskip('mmseg')
    cfg = read_config(DEMO)
    init_default_scope('mmseg')
    weights = MODELS.build(cfg.model).state_dict()
    torch.save(dict(state_dict=weights), tmp_path / 'a.pth')
    for options in (['--dynamic', '--factored'], ['--fp16', '--normalise']):
        out = tmp_path / 'a.onnx'
        code, printed, _ = export(
            DEMO, tmp_path / 'a.pth', out, '--force', '--shape', 64, 64, *options
        )
        assert code == 0
        assert printed.count('onnxruntime on ') == 3
        assert out.is_file()
