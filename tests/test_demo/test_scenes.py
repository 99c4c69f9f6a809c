import numpy as np
import pytest

from scenes import KINDS, LABELS, UNLABELLED, draw_scene, write_dataset

COUNTS = dict(training=6, validation=7)


def test_scene_is_deterministic():
    image, labels = draw_scene(3, 'training', 5)
    again, labels_again = draw_scene(3, 'training', 5)
    assert np.array_equal(image, again)
    assert np.array_equal(labels, labels_again)
    for other in ((4, 'training', 5), (3, 'validation', 5), (3, 'training', 9)):
        assert not np.array_equal(labels, draw_scene(*other)[1])


@pytest.mark.parametrize('size', [(144, 192), (64, 64), (71, 53)])
def test_scene_size(size):
    image, labels = draw_scene(0, 'training', 0, size)
    assert image.shape == (*size, 3)
    assert labels.shape == size
    assert image.dtype == labels.dtype == np.uint8


def test_scenes_show_every_class_in_varied_shapes():
    scenes = [draw_scene(0, 'training', i) for i in range(48)]
    share = np.bincount(np.stack([labels for _, labels in scenes]).ravel())
    assert set(np.flatnonzero(share)) == {UNLABELLED, *LABELS.values()}
    assert share[UNLABELLED] / share.sum() < 0.05
    for image, labels in scenes:
        assert len(np.unique(labels)) >= 3
        assert image.std() > 15
        # Texture and noise: no class is painted in one flat colour.
        for label in np.unique(labels):
            if (labels == label).sum() > 200:
                assert image[labels == label].std() > 2
    horizons = {int((labels == LABELS['sky']).any(1).sum()) for _, labels in scenes}
    assert len(horizons) > 10


def test_annotation_lies_on_its_image():
    image, labels = draw_scene(1, 'training', 3)
    assert list(KINDS)[3] == 'coast'
    # Light and noise aside, the sea is bluer than the sand.
    blue = image[..., 0].astype(int) - image[..., 2]
    assert blue[labels == LABELS['sea']].mean() > blue[labels == LABELS['sand']].mean()


def test_interrupted_drawing_keeps_the_earlier_data(tmp_path):
    root = tmp_path / 'ADE'
    write_dataset(root, 0, dict(training=1, validation=1), (36, 48))
    before = sorted(root.rglob('*'))

    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_dataset(root, 1, COUNTS, (36, 48), progress=interrupt)
    assert sorted(root.rglob('*')) == before
    assert list(tmp_path.iterdir()) == [root]
