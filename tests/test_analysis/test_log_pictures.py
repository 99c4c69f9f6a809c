from pathlib import Path

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure

from pelk_mm.analysis.log_pictures import draw_runs, moving_average
from pelk_mm.analysis.logs import Run


def run(name, offset=0.0):
    points = [(float(i), offset + 1 / i) for i in range(1, 9)]
    return Run(Path(name), {'loss': points}, {'mIoU': [(4, 1 + offset), (8, 2.0)]})


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """Draws runs and returns the figure."""
    kept = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure,
        'savefig',
        lambda self, *a, **k: (kept.append(self), save(self, *a, **k)),
    )

    def call(*args, **kwargs):
        draw_runs(*args, tmp_path / 'plot', **kwargs)
        assert cv2.imread(str(tmp_path / 'plot')).std() > 10
        return kept[-1]

    return call


def test_panels_lines_and_points(draw):
    runs = [run('a'), run('b', 1.0)]
    figure = draw(runs, ['first', 'second'], ['loss', 'mIoU'])
    loss, miou = figure.axes
    assert (loss.get_title(), miou.get_title()) == ('loss', 'mIoU')
    assert loss.get_xlabel() == 'iteration'
    for number, (line, each) in enumerate(zip(loss.lines, runs, strict=True)):
        assert list(zip(*line.get_data(), strict=True)) == each.training['loss']
        assert line.get_marker() == 'None'
        assert line.get_color() == miou.lines[number].get_color()
        points = miou.lines[number]
        assert list(zip(*points.get_data(), strict=True)) == each.validation['mIoU']
        assert points.get_marker() == 'o'
    assert loss.lines[0].get_color() != loss.lines[1].get_color()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ['first', 'second']


def test_smoothed_line_over_the_records(draw):
    figure = draw([run('a')], ['a'], ['loss'], smooth=3)
    raw, smoothed = figure.axes[0].lines
    assert raw.get_alpha() < 1
    values = raw.get_ydata()
    assert smoothed.get_ydata()[2:] == pytest.approx(
        [values[i - 2 : i + 1].mean() for i in range(2, 8)]
    )
    assert figure._suptitle.get_text() == 'a'


def test_run_without_a_key_and_a_single_record(draw):
    young = Run(Path('young'), {'loss': [(1.0, 2.0)]})
    figure = draw([run('a'), young], ['a', 'young'], ['loss', 'mIoU', 'mIoU', 'loss'])
    assert len(figure.axes) == 4
    assert figure.axes[0].lines[1].get_marker() == '.'
    assert len(figure.axes[1].lines) == 1


def test_many_runs_differ(draw):
    runs = [run(str(i)) for i in range(9)]
    figure = draw(runs, [str(i) for i in range(9)], ['loss'])
    styles = {(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines}
    assert len(styles) == 9


def test_moving_average():
    values = np.array([1.0, 2, np.nan, 4, 5, np.inf])
    assert moving_average(values, 2) == pytest.approx([1, 1.5, 2, 4, 4.5, 5])
    assert moving_average(values, 99) == pytest.approx([1, 1.5, 1.5, 7 / 3, 3, 3])
    assert np.isnan(moving_average(np.array([np.nan, np.nan, np.nan]), 2)).all()
