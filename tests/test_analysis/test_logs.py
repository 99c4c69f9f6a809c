import json

import pytest

from pelk_mm.analysis.logs import (
    LogError,
    best_point,
    find_logs,
    format_table,
    name_runs,
    read_run,
    require_keys,
    usual_keys,
)


def train(step, loss, **others):
    return dict(lr=0.1, loss=loss, time=0.5, iter=step, step=step, **others)


def write(folder, records, name='vis_data/scalars.json', end=''):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(''.join(json.dumps(r) + '\n' for r in records) + end)
    return path


@pytest.fixture
def segmenter(tmp_path):
    """A work directory with a run of four iterations and two evaluations."""
    records = [
        train(1, 4.0),
        train(2, 3.0),
        dict(mIoU=10.0, time=0.1, step=2),
        train(3, 2.0),
        train(4, 2.5),
        dict(mIoU=9.0, time=0.1, step=4),
    ]
    write(tmp_path / 'work' / '20240101_000000', records)
    return tmp_path / 'work'


def test_curves_of_iterations(segmenter):
    run = read_run(segmenter)
    assert run.training['loss'] == [(1, 4.0), (2, 3.0), (3, 2.0), (4, 2.5)]
    assert run.validation == {
        'mIoU': [(2, 10.0), (4, 9.0)],
        'time': [(2, 0.1), (4, 0.1)],
    }
    assert run.notices == []
    assert run.unit == 'iteration'


def test_any_path_of_a_run(segmenter):
    (start,) = segmenter.iterdir()
    scalars = start / 'vis_data' / 'scalars.json'
    for path in (segmenter, start, start / 'vis_data', scalars):
        assert find_logs(path) == [scalars]
    # A start without the common file, as of other visualizers.
    scalars.rename(scalars.with_name('20240101_000000.json'))
    assert read_run(segmenter).training['loss'][0] == (1, 4.0)


def test_resumed_runs_are_joined(segmenter):
    records = [train(3, 1.0), train(4, 0.5), train(5, 0.4), dict(mIoU=20.0, step=5)]
    write(segmenter / '20240102_000000', records)
    # A test writes its config only, and a start may end before the first record.
    (segmenter / '20240103_000000' / 'vis_data').mkdir(parents=True)
    write(segmenter / '20240104_000000', [])
    run = read_run(segmenter)
    assert [value for _, value in run.training['loss']] == [4, 3, 1, 0.5, 0.4]
    assert run.validation['mIoU'] == [(2, 10.0), (5, 20.0)]
    (notice,) = run.notices
    assert 'goes on after iteration 2 and replaces 2 later records' in notice


def test_run_that_starts_anew(segmenter):
    write(segmenter / '20240102_000000', [train(1, 7.0), train(2, 6.0)])
    run = read_run(segmenter)
    assert run.training['loss'] == [(1, 7.0), (2, 6.0)]
    assert 'mIoU' not in run.validation
    (notice,) = run.notices
    assert 'starts anew' in notice


def test_resumed_exactly_where_it_ended(segmenter):
    write(segmenter / '20240102_000000', [train(5, 1.0), train(6, 1.0)])
    run = read_run(segmenter)
    assert len(run.training['loss']) == 6
    assert run.validation['mIoU'] == [(2, 10.0), (4, 9.0)]
    assert run.notices == []


def detector_records(first, last, length=7, interval=3):
    """Epochs of a detector whose logging does not divide them."""
    records = []
    for epoch in range(first, last + 1):
        for inner in range(interval, length + 1, interval):
            step = (epoch - 1) * length + inner
            records.append(train(step, 1 / step, epoch=epoch))
        records.append({'coco/bbox_mAP': epoch / 10, 'time': 0.1, 'step': epoch})
    return records


def test_evaluations_of_epochs_are_at_their_ends(tmp_path):
    write(tmp_path / '20240101_000000', detector_records(1, 8))
    run = read_run(tmp_path)
    places = [place for place, _ in run.validation['coco/bbox_mAP']]
    assert places == [7 * epoch for epoch in range(1, 9)]
    write(tmp_path / '20240102_000000', detector_records(7, 9))
    run = read_run(tmp_path)
    places = [place for place, _ in run.validation['coco/bbox_mAP']]
    assert places == [7 * epoch for epoch in range(1, 10)]
    assert [p for p, _ in run.training['loss']] == sorted(
        {p for p, _ in run.training['loss']}
    )


def test_evaluations_counted_in_epochs_of_an_iteration_based_run(tmp_path):
    """As where log_metric_by_epoch was left at its default."""
    records = [train(50, 1.0), dict(mIoU=1.0, step=0)]
    records += [train(100, 1.0), dict(mIoU=2.0, step=0)]
    write(tmp_path, records)
    assert read_run(tmp_path).validation['mIoU'] == [(50, 1.0), (100, 2.0)]


def old_train(epoch, iteration, loss):
    return dict(mode='train', epoch=epoch, iter=iteration, lr=0.1, loss=loss)


def test_logs_of_the_versions_before(tmp_path):
    records = [dict(env_info='...', seed=0)]
    for epoch in (1, 2):
        records += [old_train(epoch, i, epoch + i) for i in (10, 20)]
        # Its iterations are the images that were evaluated.
        score = dict(mode='val', epoch=epoch, iter=5000, bbox_mAP=epoch / 10)
        records.append(score)
    write(tmp_path, records, '20200101_000000.log.json')
    run = read_run(tmp_path)
    assert [place for place, _ in run.training['loss']] == [10, 20, 30, 40]
    assert run.validation['bbox_mAP'] == [(20, 0.1), (40, 0.2)]
    records = [old_train(1, 50, 2), dict(mode='val', epoch=1, iter=9, mIoU=0.3)]
    records += [old_train(2, 100, 1), dict(mode='val', epoch=2, iter=9, mIoU=0.4)]
    path = write(tmp_path, records, '20210101_000000.log.json')
    run = read_run(path)
    assert [place for place, _ in run.training['loss']] == [50, 100]
    assert run.validation['mIoU'] == [(50, 0.3), (100, 0.4)]


def test_last_line_cut_off(tmp_path):
    path = write(tmp_path, [train(1, 4.0)], end='{"lr": 0.1, "lo')
    run = read_run(tmp_path)
    assert run.training['loss'] == [(1, 4.0)]
    assert run.notices == [f'{path}: its last line is cut off and was left out']


def test_what_is_no_number_is_no_curve(tmp_path):
    records = [train(1, float('nan'), note='x', flag=True, table=[1])]
    write(tmp_path, records)
    run = read_run(tmp_path)
    assert list(run.training) == ['lr', 'loss', 'time']
    assert best_point('loss', run.training['loss'], False) is None
    assert 'nan' in format_table([run], ['a'], ['loss'])


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('', 'has no records of a training yet'),
        ('{"a": 1', 'line 1 is no JSON'),
        ('{"a": 1}\n{\n{"a": 1}\n', 'line 2 is no JSON'),
        ('[1]\n', 'line 1 is no record'),
        ('[' * 100000, 'line 1 is no JSON'),
        ('{"images": [], "annotations": []}', 'has no records of a training yet'),
        (b'\x89PNG\xff', 'it is not text'),
    ],
)
def test_files_that_are_no_logs(tmp_path, content, message):
    path = tmp_path / 'a.json'
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(LogError, match=message):
        read_run(path)


def test_paths_without_a_log(segmenter, tmp_path):
    with pytest.raises(LogError, match='gone does not exist'):
        read_run(tmp_path / 'gone')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(LogError, match='empty holds no log.*give a work_dir'):
        read_run(tmp_path / 'empty')
    with pytest.raises(LogError, match=f'give those inside, as {segmenter}'):
        read_run(tmp_path)


def test_keys_by_their_ends(tmp_path):
    records = [train(1, 4.0), {'coco/bbox_mAP': 0.5, 'coco/segm_mAP': 0.4, 'step': 1}]
    records.append({'a/score': 1, 'b/score': 2, 'step': 1})
    write(tmp_path, records)
    run = read_run(tmp_path)
    assert run.find('BBOX_map') == ([], [(1, 0.5)])
    assert run.find('coco/segm_mAP') == ([], [(1, 0.4)])
    with pytest.raises(LogError, match='score may mean a/score or b/score'):
        run.find('score')
    assert usual_keys([run]) == ['loss', 'bbox_mAP', 'segm_mAP']


def test_usual_keys_of_other_metrics(tmp_path):
    write(tmp_path, [train(1, 4.0), dict(time=1, PQ=3.0, step=1)])
    assert usual_keys([read_run(tmp_path)]) == ['loss', 'PQ']


def test_missing_keys(segmenter, tmp_path):
    write(tmp_path / 'young', [train(1, 4.0)])
    runs = [read_run(segmenter), read_run(tmp_path / 'young')]
    assert require_keys(runs, ['loss', 'mIoU']) == [f'{tmp_path / "young"} has no mIoU']
    with pytest.raises(LogError, match="'PQ'; there are lr, loss, time, mIoU$"):
        require_keys(runs, ['loss', 'PQ'])


def test_table(segmenter, tmp_path):
    write(tmp_path / 'young', [train(12345, 4.0)])
    runs = [read_run(segmenter), read_run(tmp_path / 'young')]
    text = format_table(runs, name_runs(runs), ['loss', 'mIoU', 'lr'])
    assert [line.split() for line in text.splitlines()] == [
        ['run', 'key', 'last', 'at', 'best', 'at'],
        ['work', 'loss', '2.5', '4', '2', '3'],
        ['work', 'mIoU', '9', '4', '10', '2'],
        ['work', 'lr', '0.1', '4', '-', '-'],
        ['young', 'loss', '4', '12,345', '4', '12,345'],
        ['young', 'mIoU', '-', '-', '-', '-'],
        ['young', 'lr', '0.1', '12,345', '-', '-'],
    ]


def test_names_differ(tmp_path):
    for folder in ('a/x', 'b/x', 'c'):
        write(tmp_path / folder, [train(1, 1.0)])
    runs = [read_run(tmp_path / folder) for folder in ('a/x', 'b/x', 'c')]
    names = name_runs(runs)
    assert names[:2] == ['a/x', 'b/x']
    assert names[2].endswith('/c')
    assert name_runs([runs[0], runs[2]]) == ['x', 'c']
    assert name_runs([runs[0], runs[0]]) == ['x', 'x']


@pytest.mark.parametrize(
    'entry',
    [
        '"iter": NaN',
        '"iter": 1e999',
        f'"iter": 1{"0" * 400}',
        '"iter": "x"',
        '"iter": 3, "epoch": "xxx"',
        '"iter": 3, "epoch": []',
        '"mode": "val", "epoch": "x"',
        '"mode": [], "iter": 3',
        '"step": {}',
    ],
)
def test_record_that_is_nowhere(tmp_path, entry):
    path = tmp_path / 'scalars.json'
    path.write_text(f'{{"loss": 1.0, "iter": 1, "step": 1}}\n{{"loss": 2, {entry}}}\n')
    with pytest.raises(LogError, match=r'scalars\.json is not a log: line 2 has \w+'):
        read_run(path)


def test_number_that_cannot_be_drawn_is_no_point(tmp_path):
    path = tmp_path / 'scalars.json'
    path.write_text(f'{{"loss": 1.0, "lr": 1{"0" * 400}, "iter": 1, "step": 1}}\n')
    assert list(read_run(path).training) == ['loss']
