"""The command line that lays predictions over images, folders and videos."""

import importlib.util
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from pelk_mm.inference import pictures

TOOL = Path(__file__).parents[2] / 'tools' / 'image_demo.py'
spec = importlib.util.spec_from_file_location('image_demo', TOOL)
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)


@pytest.fixture
def run(segmenter_files, tmp_path, capsys):
    """Function that runs the tool; returns exit code, standard output and error."""

    def run(source, *flags, config='segmenter.py', checkpoint='segmenter.pth'):
        files = [str(segmenter_files / name) for name in (config, checkpoint)]
        out = [] if '--out' in flags else ['--out', str(tmp_path / 'out')]
        code = tool.main([str(source), *files, *out, *map(str, flags)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def read(path):
    image = cv2.imread(str(path))
    assert image is not None, path
    return image


def test_one_image(run, segmenter_files, tmp_path):
    code, printed, error = run(segmenter_files / 'image.png')
    assert (code, error) == (0, '')
    assert printed.endswith(f'1 picture in {tmp_path / "out"}\n')
    (result,) = (tmp_path / 'out').iterdir()
    assert result.name == 'image.png'
    height, width, _ = read(result).shape
    assert height == 5 * 64
    assert width > 5 * 96  # the legend


def test_every_form_draws_the_same(run, segmenter_files, tmp_path):
    pictures = []
    for flags in ([], ['--deploy'], ['--prepare', 'float32']):
        out = tmp_path / f'out{len(flags)}'
        assert run(segmenter_files / 'image.png', *flags, '--out', out)[0] == 0
        pictures.append(read(out / 'image.png').astype(int))
    for picture in pictures[1:]:
        assert (np.abs(picture - pictures[0]) > 9).mean() < 1e-3


def test_maps_of_a_prepared_model_are_refused(run, segmenter_files, capsys):
    with pytest.raises(SystemExit):
        run(segmenter_files / 'image.png', '--prepare', 'bfloat16', '--cam', 'list')
    assert '--cam needs gradients, which --prepare leaves' in capsys.readouterr().err


@pytest.fixture
def photos(tmp_path, segmenter_files):
    """A folder of images of many kinds, two of which cannot be read."""
    root = tmp_path / 'photos'
    (root / 'sub').mkdir(parents=True)
    image = read(segmenter_files / 'image.png')
    cv2.imwrite(str(root / 'a.jpg'), image)
    cv2.imwrite(str(root / 'sub' / 'a.png'), image[:40, :55])  # odd sizes
    cv2.imwrite(str(root / 'sub' / 'grey.png'), image[..., 0])
    cv2.imwrite(str(root / 'deep.png'), image.astype(np.uint16) * 257)
    (root / 'broken.png').write_bytes(b'hello')
    (root / 'empty.jpg').touch()
    (root / 'notes.txt').write_text('not an image')
    return root


def test_folder(run, photos, tmp_path):
    code, printed, error = run(photos)
    assert code == 1
    assert '4 pictures in' in printed
    lines = error.splitlines()
    assert len(lines) == 2
    assert 'broken.png cannot be decoded as an image' in lines[0]
    assert 'empty.jpg is empty' in lines[1]
    out = tmp_path / 'out'
    written = sorted(str(p.relative_to(out)) for p in out.rglob('*') if p.is_file())
    assert written == ['a.png', 'deep.png', 'sub/a.png', 'sub/grey.png']
    assert all(read(out / name).size for name in written)


def test_pattern(run, photos, tmp_path):
    assert run(f'{photos}/**/a.*')[0] == 0
    out = tmp_path / 'out'
    assert sorted(str(p.relative_to(out)) for p in out.rglob('*.*')) == [
        'a.png',
        'sub/a.png',
    ]


def test_image_that_is_too_small_is_reported(run, tmp_path):
    cv2.imwrite(str(tmp_path / 'one.png'), np.zeros((1, 1, 3), np.uint8))
    code, _, error = run(tmp_path / 'one.png')
    assert code == 1
    assert error.startswith(f'{Path(sys.argv[0]).name}: {tmp_path / "one.png"}: the')
    assert 'cannot predict for an image of 1 x 1 pixels' in error
    assert error.count('\n') == 1


def test_notice_without_names(run, segmenter_files):
    code, printed, _ = run(segmenter_files / 'image.png', checkpoint='nameless.pth')
    assert code == 0
    assert 'note:' not in printed  # the config has names


@pytest.fixture
def video(tmp_path, segmenter_files):
    """Function that writes a video of some frames, 96 x 64 pixels."""
    image = read(segmenter_files / 'image.png')

    def write(frames, name='clip.mp4', code='mp4v'):
        path = tmp_path / name
        fourcc = cv2.VideoWriter.fourcc(*code)
        writer = cv2.VideoWriter(str(path), fourcc, 5.0, (96, 64))
        assert writer.isOpened()
        for i in range(frames):
            writer.write(np.roll(image, 7 * i, axis=1))
        writer.release()
        return path

    return write


def test_video(run, video, tmp_path):
    code, printed, error = run(video(3))
    assert (code, error) == (0, '')
    result = tmp_path / 'out' / 'clip.mp4'
    assert f'3 frames in {result}' in printed
    assert list((tmp_path / 'out').iterdir()) == [result]
    opened = cv2.VideoCapture(str(result))
    assert opened.get(cv2.CAP_PROP_FPS) == 5
    frames = []
    while True:
        found, frame = opened.read()
        if not found:
            break
        frames.append(frame)
    assert len(frames) == 3
    assert frames[0].shape[0] == 5 * 64
    assert frames[0].shape[1] > 5 * 96
    assert np.abs(frames[0].astype(int) - frames[2]).mean() > 1  # not the same one


def test_videos_and_images_by_a_pattern(run, video, photos, tmp_path):
    video(1, 'photos/clip.avi', 'MJPG')
    code, printed, error = run(f'{photos}/*[pg4i]*')
    assert code == 1  # of the two broken images
    assert '2 pictures in' in printed
    assert '1 frames in' in printed
    assert error.count('\n') == 2


def test_video_that_ends_early(run, video, tmp_path, monkeypatch):
    frames = pictures._frames
    monkeypatch.setattr(
        pictures,
        '_frames',
        lambda v: (f for f, _ in zip(frames(v), 'ab', strict=False)),
    )
    code, printed, error = run(video(5))
    assert code == 1
    assert '2 frames in' in printed
    assert 'ends after 2 of the 5 frames that it should have' in error


def test_broken_video_leaves_nothing(run, tmp_path):
    (tmp_path / 'clip.mp4').write_bytes(b'hello')
    code, _, error = run(tmp_path / 'clip.mp4')
    assert code == 1
    assert 'clip.mp4 cannot be read as a video' in error
    assert not list((tmp_path / 'out').rglob('*'))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(source='gone.png'), 'gone.png does not exist'),
        (dict(config='gone.py'), 'gone.py does not exist'),
        (dict(checkpoint='gone.pth'), 'gone.pth does not exist'),
        (dict(flags=('--device', 'cuda:99')), "device 'cuda:99' cannot be used"),
        (dict(flags=('--cam', 'list'), source='clip.mp4'), 'clip.mp4 does not exist'),
    ],
)
def test_bad_arguments_have_one_line(run, segmenter_files, changes, message):
    source = segmenter_files / changes.pop('source', 'image.png')
    code, printed, error = run(source, *changes.pop('flags', ()), **changes)
    assert code == 1
    assert error.count('\n') == 1
    assert message in error
    assert 'picture' not in printed


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (('--score-thr', '2'), '2 is not a score from 0 to 1'),
        (('--score-thr', 'high'), "invalid score value: 'high'"),
        (('--cam-class', 'sky'), '--cam-class needs --cam LAYER'),
    ],
)
def test_wrong_command_lines(run, segmenter_files, flags, message, capsys):
    with pytest.raises(SystemExit) as end:
        run(segmenter_files / 'image.png', *flags)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_names_of_configs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    args = tool.parse_args(['a.png', 'upernet_pelk_t_ade20k', 'b.pth', '--out', 'c'])
    assert Path(args.config).is_file()
    with pytest.raises(SystemExit):
        tool.parse_args(['a.png', 'upernet_pelk_t_ade20', 'b.pth', '--out', 'c'])
    assert 'did you mean upernet_pelk_t_ade20k' in capsys.readouterr().err


def test_results_do_not_replace_the_images(run, photos):
    before = {path: path.read_bytes() for path in photos.rglob('*.*')}
    code, _, error = run(photos, '--out', photos)
    assert code == 1
    assert 'would replace an image that is read; choose another --out' in error
    assert {path: path.read_bytes() for path in photos.rglob('*.*')} == before


def test_out_is_a_file(run, segmenter_files, tmp_path):
    (tmp_path / 'taken').touch()
    code, _, error = run(segmenter_files / 'image.png', '--out', tmp_path / 'taken')
    assert code == 1
    assert 'taken' in error
    assert error.count('\n') == 1


def test_layers_are_listed(run, segmenter_files):
    code, printed, error = run(segmenter_files / 'image.png', '--cam', 'list')
    assert (code, error) == (0, '')
    assert 'backbone.stages.3.blocks.0  ConvNeXtBlock  24 x 2 x 3\n' in printed
    assert 'picture' not in printed
