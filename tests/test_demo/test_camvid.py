"""Trainings, tables, pictures and weights of demo/camvid.py, on drawn streets."""

import argparse
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

pytest.importorskip('mmseg')

from mmengine.config import Config
from mmengine.hooks import EMAHook

import camvid
import camvid_weights
from camvid_compare import compare
from camvid_pictures import spread_evenly
from camvid_runs import (
    RESULT,
    Result,
    Run,
    RunError,
    _resume,
    best_checkpoint,
    best_runs,
    build_model,
    finish,
    load_tested,
    predict,
)
from camvid_tables import format_tables
from camvid_weights import MOST_BYTES, save_weights
from pelk_mm.checkpoints.files import read_checkpoint

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / 'configs' / 'examples'
CLASSES = Config.fromfile(EXAMPLES / '_base_/narrow_camvid.py').classes
ITERS = 3


@pytest.fixture(scope='module')
def configs(tmp_path_factory, small_example):
    """Small copies of a sparse example and the control."""
    folder = tmp_path_factory.mktemp('configs')
    return [
        small_example(f'upernet_{kind}_narrow_camvid{form}', folder)
        for kind, form in (('pelk', '_sparse'), ('convnext7', ''))
    ]


@pytest.fixture(scope='module')
def arguments(streets, configs, tmp_path_factory):
    return argparse.Namespace(
        configs=configs,
        seeds=[0, 1],
        data=streets,
        out=tmp_path_factory.mktemp('work_dirs') / 'camvid',
        iters=ITERS,
        plot=True,
        save_weights=configs,
        cfg_options=['log_level=ERROR'],
    )


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """A checkout with nothing but an index."""
    folder = tmp_path_factory.mktemp('checkout')
    (folder / 'configs/examples').mkdir(parents=True)
    (folder / 'model-index.yml').write_text((ROOT / 'model-index.yml').read_text())
    return folder


@pytest.fixture(scope='module')
def tables(arguments, root, patched, one_thread):
    return compare(arguments, root)


@pytest.fixture
def results(arguments, tables):
    return [
        Result(**entries)
        for entries in json.loads((arguments.out / 'results.json').read_text())
    ]


def a_run(arguments, config, **changes):
    settings = dict(
        config=config,
        seed=0,
        folder=arguments.out / config.stem / 'seed_0',
        data=arguments.data,
        iters=ITERS,
        options=dict(log_level='ERROR'),
    )
    return Run(**{**settings, **changes})


@pytest.mark.long
def test_every_config_and_seed_has_its_result(arguments, results):
    assert [(each.config, each.seed) for each in results] == [
        (config.stem, seed) for config in arguments.configs for seed in (0, 1)
    ]
    assert all(each.iterations == ITERS for each in results)
    sparse, control = results[0], results[2]
    assert sparse.nonzeros < sparse.parameters - 1000
    assert 0 <= control.parameters - control.nonzeros < 200  # norms' biases start at 0
    # Our operators compute what the papers count where kernel and weights are dense.
    assert control.multiply_adds == pytest.approx(control.multiply_adds_paper, rel=0.01)
    assert sparse.multiply_adds != pytest.approx(sparse.multiply_adds_paper, rel=1e-3)
    assert all(each.minutes > ITERS * 1e-4 for each in results)


@pytest.mark.long
def test_scores_are_those_of_the_best_checkpoint(arguments, results, streets):
    run, result = a_run(arguments, arguments.configs[0]), results[0]
    weights = read_checkpoint(run.folder / result.checkpoint)['state_dict']
    cfg = run.load()
    confusion = np.zeros((256, 11), int)
    for _, samples in predict(build_model(cfg, weights), load_tested(cfg)):
        for sample in samples:
            truth = cv2.imread(sample['seg_map_path'], -1)
            assert str(streets / 'ann_dir/test') in sample['seg_map_path']
            predicted = sample['pred_sem_seg']['data'].squeeze().numpy()
            np.add.at(confusion, (truth.ravel(), predicted.ravel()), 1)
    confusion = confusion[:11]
    union = confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
    ious = 100 * confusion.diagonal()[union > 0] / union[union > 0]
    assert result.test['mIoU'] == pytest.approx(ious.mean(), abs=1e-3)
    # What the log has is rounded.
    best = [
        record['mIoU']
        for log in run.folder.glob('*/vis_data/scalars.json')
        for record in map(json.loads, log.read_text().splitlines())
        if 'mIoU' in record
    ]
    assert len(best) == ITERS
    assert result.validation == max(best)


@pytest.mark.long
def test_tables_have_the_figures(tables, results, arguments):
    assert (arguments.out / 'results.md').read_text() == tables
    for config in {each.config for each in results}:
        scores = [each.test['mIoU'] for each in results if each.config == config]
        cell = f'{np.mean(scores):.1f} ({min(scores):.1f} to {max(scores):.1f})'
        assert f'| {config} | 2 | {cell} |' in tables
        assert tables.count(f'\n| {config} |') == 3
    assert '| config | sky | building |' in tables
    # Of one run there is no spread.
    assert f'| 1 | {results[0].test["mIoU"]:.1f} |' in format_tables(results[:1])


@pytest.mark.long
def test_finished_runs_are_not_trained_again(arguments, tables, root, monkeypatch):
    monkeypatch.setattr('camvid_runs.Runner.from_cfg', None)
    monkeypatch.setattr(arguments, 'plot', False)
    monkeypatch.setattr(arguments, 'save_weights', [])
    assert compare(arguments, root) == tables


@pytest.mark.long
@pytest.mark.usefixtures('one_thread', 'patched')
def test_interrupted_run_goes_on(arguments, tables, tmp_path, monkeypatch):
    run = a_run(arguments, arguments.configs[0], folder=tmp_path / 'runs' / 'seed_0')

    def interrupt(hook, runner, *args, **kwargs):
        average(hook, runner, *args, **kwargs)
        if runner.iter == 1:  # the second
            raise KeyboardInterrupt

    average = EMAHook.after_train_iter
    with monkeypatch.context() as patch:
        patch.setattr(EMAHook, 'after_train_iter', interrupt)
        with pytest.raises(KeyboardInterrupt):
            finish(run)
    assert (run.folder / 'iter_1.pth').is_file()
    assert not (run.folder / RESULT).exists()
    result = finish(run)
    whole = a_run(arguments, arguments.configs[0])
    assert result.test == Result.read(whole.folder / RESULT).test
    for folder in (run.folder, whole.folder):
        assert (folder / f'iter_{ITERS}.pth').is_file()
    ends = [
        read_checkpoint(folder / f'iter_{ITERS}.pth')['state_dict']
        for folder in (run.folder, whole.folder)
    ]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[1])


def test_interrupted_run_that_started_from_weights_goes_on_from_its_own(tmp_path):
    cfg = Config(dict(load_from='pretrained.pth', resume=False))
    _resume(cfg, tmp_path)
    assert cfg.to_dict() == dict(load_from='pretrained.pth', resume=False)
    (tmp_path / 'iter_1.pth').write_bytes(b'')
    _resume(cfg, tmp_path)
    assert cfg.to_dict() == dict(load_from=None, resume=True)


@pytest.mark.long
@pytest.mark.parametrize(
    ('change', 'named'),
    [
        (dict(iters=4), 'iterations'),
        (dict(options={'model.decode_head.dropout_ratio': 0.2}), 'options'),
    ],
)
def test_other_settings_are_refused(arguments, tables, change, named):
    with pytest.raises(RunError, match=rf'other settings \(.*{named}.*--out'):
        finish(a_run(arguments, arguments.configs[0], **change))


@pytest.mark.long
def test_moved_data_are_the_same_settings(arguments, tables, tmp_path):
    (tmp_path / 'elsewhere').symlink_to(arguments.data)
    run = a_run(arguments, arguments.configs[0], data=tmp_path / 'elsewhere')
    assert finish(run) == Result.read(run.folder / RESULT)


@pytest.mark.long
def test_foreign_folder_and_damaged_record_are_refused(arguments, tables, tmp_path):
    (tmp_path / 'thesis.tex').write_text('precious')
    config = arguments.configs[0]
    with pytest.raises(RunError, match=r'not from a run.*run\.json.*--out'):
        finish(a_run(arguments, config, folder=tmp_path))
    (tmp_path / 'result.json').write_text('{"seed": 1}')
    with pytest.raises(RunError, match=r"result\.json is no record.*'config'"):
        Result.read(tmp_path / 'result.json')
    with pytest.raises(RunError, match='no best_mIoU_iter'):
        best_checkpoint(tmp_path)


@pytest.mark.long
def test_pictures(arguments, tables):
    for name, columns in (('curves', 1.2), ('examples', 0.4), ('erf', 1.5)):
        picture = cv2.imread(str(arguments.out / f'{name}.png'))
        height, width = picture.shape[:2]
        assert width > columns * height
        assert picture.std() > 10
    areas = (arguments.out / 'erf.md').read_text()
    assert all(f'| {config.stem} | seed' in areas for config in arguments.configs)


def test_examples_are_spread_over_the_images():
    assert spread_evenly(233, 6) == [0, 46, 93, 139, 186, 232]
    assert spread_evenly(3, 6) == [0, 1, 2]


@pytest.mark.long
def test_weights_give_the_figure_of_the_metafile(arguments, tables, root, results):
    index = yaml.safe_load((root / 'model-index.yml').read_text())['Import']
    assert index[-1] == 'configs/examples/metafile.yml'
    assert len(set(index)) == len(index) == 4
    models = yaml.safe_load((root / index[-1]).read_text())['Models']
    assert [each['Name'] for each in models] == sorted(
        c.stem for c in arguments.configs
    )
    for model in models:
        path = root / model['Weights']
        assert path.stat().st_size <= MOST_BYTES
        checkpoint = read_checkpoint(path)
        weights = checkpoint['state_dict']
        kinds = {tensor.dtype for tensor in weights.values()}
        assert kinds == {torch.float16, torch.int64}  # BatchNorm counts batches
        assert checkpoint['meta']['dataset_meta']['classes'] == list(CLASSES)
        assert 'research' in checkpoint['meta']['license']
        assert 'research' in model['Metadata']['License']
        best = max(
            (each for each in results if each.config == model['Name']),
            key=lambda each: each.validation,
        )
        config = next(c for c in arguments.configs if c.stem == model['Name'])
        cfg = a_run(arguments, config).load()
        scores, _ = camvid_weights.score(build_model(cfg, weights), cfg)
        (figure,) = (each['Metrics']['mIoU'] for each in model['Results'])
        assert scores.mIoU == pytest.approx(figure, abs=0.006)
        assert figure == pytest.approx(best.test['mIoU'], abs=camvid_weights.TOLERANCE)
        assert ('Non-zero parameters' in model['Metadata']) == ('sparse' in config.stem)


@pytest.mark.long
@pytest.mark.parametrize(
    ('setting', 'value', 'message'),
    [('MOST_BYTES', 1000, 'more than 1,000'), ('TOLERANCE', -1.0, 'in float16 and')],
)
def test_weights_that_do_not_keep_the_promise_are_not_written(
    arguments, results, root, setting, value, message, monkeypatch
):
    monkeypatch.setattr(camvid_weights, setting, value)
    run = a_run(arguments, arguments.configs[0])
    before = {path: path.read_bytes() for path in root.rglob('*') if path.is_file()}
    with pytest.raises(RunError, match=message):
        save_weights(run, results[0], root)
    assert before == {p: p.read_bytes() for p in root.rglob('*') if p.is_file()}


def test_weights_beyond_float16_are_refused():
    with pytest.raises(RunError, match='decode_head.x has values that float16'):
        camvid_weights._half(torch.tensor([7e4]), 'decode_head.x')


@pytest.mark.long
def test_best_run_is_chosen_by_validation(arguments, results):
    runs = [a_run(arguments, arguments.configs[0], seed=seed) for seed in (0, 1)]
    for order in (1, -1):
        scored = [
            Result(**{**vars(result), 'validation': order * result.seed})
            for result in results[:2]
        ]
        ((run, _),) = best_runs(list(zip(runs, scored, strict=True))).values()
        assert run.seed == (1 if order == 1 else 0)


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        (['--configs', 'upernet_pelk'], 'neither a file nor one of upernet_convnext7'),
        (
            ['--configs', camvid.NAMES[0], camvid.NAMES[0]],
            'names upernet_pelk_.* twice',
        ),
        (
            ['--save-weights', *camvid.NAMES[:1], '--configs', *camvid.NAMES[1:]],
            'is not',
        ),
        (['--seeds', '-1'], 'not a whole number from 0'),
        (['--cfg-options', 'x'], 'x is not KEY=VALUE'),
        (['--data', 'nowhere'], 'nowhere does not exist; name the data with --data'),
    ],
)
def test_bad_command_lines(run_tool, given, message):
    finished = run_tool('demo/camvid.py', *given)
    assert finished.returncode
    assert re.search(message, finished.stderr)


def test_defaults_are_the_examples():
    args = camvid.parse_args([])
    assert {path.stem for path in args.configs} == {
        p.stem
        for p in EXAMPLES.glob('upernet_*.py')
        if not p.stem.endswith('pretrained')
    }
    assert args.seeds == [0, 1, 2]
