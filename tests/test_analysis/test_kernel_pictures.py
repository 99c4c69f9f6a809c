import cv2
import numpy as np
import pytest
import torch

from pelk_mm.analysis.kernel_pictures import choose_blocks, draw_stage, write_pages
from pelk_mm.analysis.open_backbone import random_backbone
from pelk_mm.analysis.stage_kernels import stage_kernels
from pelk_mm.layers import make_sharing_grid

SIZES = dict(channels=[8, 16], depths=[1, 4], kernel_sizes=[11, 9], small_kernel=3)
CONFIGS = {
    'pelk': dict(type='PeLK', arch=dict(SIZES, small_kernel=None, central_radius=2)),
    'slak': dict(type='SLaK', arch=SIZES),
    'replknet': dict(type='RepLKNet', arch=SIZES),
}


@pytest.fixture
def page():
    """Draws the page of a stage of a narrow backbone."""

    def draw(kind, stage=1, sparse=False, deploy=False, **kwargs):
        backbone = random_backbone({**CONFIGS[kind], 'out_indices': (0, 1)})
        if sparse:
            for parameter in backbone.parameters():
                if parameter.ndim in (2, 4):
                    parameter.data[::2] = 0
        if deploy:
            backbone.switch_to_deploy()
        return draw_stage(stage_kernels(backbone, stage), 'A title', **kwargs)

    return draw


def titles(figure):
    """Titles of the panels, in order."""
    return [axes.get_title() for axes in figure.axes if axes.get_title()]


def lines(figure):
    """Titles of the page and of its rows."""
    return [text.get_text() for text in figure.texts]


def image(figure, title):
    (axes,) = (axes for axes in figure.axes if axes.get_title() == title)
    return axes.images[0]


def test_page_of_pelk(page):
    figure = page('pelk', channels=2)
    assert lines(figure) == [
        'A title',
        'stage 2: 4 blocks with kernels of 9 \N{MULTIPLICATION SIGN} 9, for 6 of 16 '
        'channels',
        'sharing grid and positional embedding h',
        'stages.1.blocks.0',
        'stages.1.blocks.2',
        'stages.1.blocks.3',
    ]
    names = titles(figure)
    assert names[:2] == [
        '7 \N{MULTIPLICATION SIGN} 7 weights and the taps of each',
        'mean |h| of all channels',
    ]
    assert sum(name == 'mean |w| of all channels' for name in names) == 3
    assert sum(name.startswith('channel ') for name in names) == 6
    assert sum(name.startswith('h of channel ') for name in names) == 1
    grid = make_sharing_grid(9, 2)
    cells = np.repeat(grid, grid)
    areas = image(figure, names[0]).get_array()
    assert np.array_equal(areas, cells[:, None] * cells)
    ticks = [text.get_text() for text in figure.axes[1].get_yticklabels()]
    assert ticks == ['1', '4']
    assert list(figure.axes[1].get_yticklabels(minor=True)) == []


def test_page_of_deployed_pelk(page):
    figure = page('pelk', deploy=True)
    assert 'the deployment form has the positional embedding in its biases' in (
        lines(figure)
    )
    assert not any('|h|' in name for name in titles(figure))


@pytest.mark.parametrize(
    ('kind', 'parts'),
    [
        ('slak', ['vertical 9 x 3', 'horizontal 3 x 9', 'small 3 x 3', 'their sum']),
        ('replknet', ['large 9 x 9', 'small 3 x 3', 'their sum']),
    ],
)
def test_pages_of_kernels_in_parts(page, kind, parts):
    figure = page(kind, blocks=1, channels=1)
    names = [name.replace('\N{MULTIPLICATION SIGN}', 'x') for name in titles(figure)]
    assert names[0] == 'mean |w| of all channels'
    assert [name.partition(': ')[2] for name in names[1:]] == parts
    images = [axes.images[0] for axes in figure.axes if axes.get_title()][1:]
    # The parts add up to the last panel, in colours that can be compared.
    total = sum(each.get_array().filled(0) for each in images[:-1])
    assert total == pytest.approx(images[-1].get_array().filled(0), abs=1e-6)
    assert len({each.get_clim() for each in images}) == 1
    low, high = images[0].get_clim()
    assert low == -high < 0
    assert images[-1].cmap.name == 'RdBu_r'
    # Where a stripe has no tap there is nothing, not a weight of 0.
    assert images[0].get_array().mask.any() == (kind == 'slak')
    extent = images[0].get_extent()
    assert extent == [-4.5, 4.5, 4.5, -4.5]


def test_deployed_large_kernel_is_one(page):
    names = titles(page('replknet', deploy=True, blocks=1))
    assert all(name.startswith('channel ') and ':' not in name for name in names[1:])
    assert len(names) == 5


@pytest.mark.parametrize('kind', CONFIGS)
def test_densities_of_a_sparse_stage(page, kind):
    figure = page(kind, sparse=True, blocks=1, channels=1)
    shares = image(figure, 'share of channels with a weight')
    assert shares.get_clim() == (0, 1)
    assert shares.get_array().compressed() == pytest.approx(0.5)
    assert lines(figure)[-1] == 'density of each layer'
    curves = {line.get_label(): line for line in figure.axes[-1].lines}
    assert {'pointwise_conv1', 'pointwise_conv2'} < curves.keys()
    for line in curves.values():
        assert line.get_ydata() == pytest.approx(0.5)
    dense = page(kind, blocks=1, channels=1)
    assert 'share of channels with a weight' not in titles(dense)


def test_colours_go_by_most_taps(page):
    backbone = random_backbone({**CONFIGS['pelk'], 'out_indices': (0, 1)})
    with torch.no_grad():
        weight = backbone.stages[0].blocks[0].mixer.large.conv.weight
        weight.fill_(0.5)
        weight[:, :, 3, 3] = 100
    figure = draw_stage(stage_kernels(backbone, 0), '', channels=1)
    (kernel,) = (a for a in figure.axes if a.get_title() == 'channel 0')
    assert kernel.images[0].get_clim() == (-0.5, 0.5)
    with torch.no_grad():
        weight.zero_()
    draw_stage(stage_kernels(backbone, 0), '', channels=1)


def test_nothing_is_cut_off(page, tmp_path):
    """Every text is inside the page."""
    for kind in CONFIGS:
        figure = page(kind, sparse=True, blocks=1, channels=1)
        figure.canvas.draw()
        renderer = figure.canvas.get_renderer()
        boxes = [axes.get_tightbbox(renderer) for axes in figure.axes]
        boxes += [text.get_window_extent(renderer) for text in figure.texts]
        width, height = figure.canvas.get_width_height()
        for box in boxes:
            assert box.x0 >= 0
            assert box.y0 >= 0
            assert box.x1 <= width
            assert box.y1 <= height


def test_pages_in_one_file(page, tmp_path):
    pages = [page('pelk', stage, blocks=1, channels=1) for stage in (0, 1)]
    for name in ('a.pdf', 'b.pdf'):
        write_pages(pages, tmp_path / name)
    content = (tmp_path / 'a.pdf').read_bytes()
    assert content == (tmp_path / 'b.pdf').read_bytes()
    assert content.startswith(b'%PDF')
    pages[0].savefig(tmp_path / 'a.png')
    assert cv2.imread(str(tmp_path / 'a.png')).std() > 10


def test_blocks_are_spread():
    assert choose_blocks(2, 3) == [0, 1]
    assert choose_blocks(9, 3) == [0, 4, 8]
    assert choose_blocks(27, 1) == [0]
