"""Detectors: boxes, masks and scores, from opening to the picture."""

import cv2
import numpy as np
import pytest
import torch

from pelk_mm.inference.models import open_model
from pelk_mm.inference.overlay import draw_result
from pelk_mm.inference.page import show
from pelk_mm.inference.pictures import show_all

IMAGE = np.random.default_rng(0).integers(0, 256, (90, 131, 3), dtype=np.uint8)


def test_names_and_colours_of_the_config(detector):
    assert not detector.is_segmenter
    assert detector.classes[:2] == ['person', 'bicycle']
    assert len(detector.palette) == len(detector.classes) == 80
    assert detector.notices == []


def test_boxes_masks_and_scores_are_drawn(detector):
    result = detector.predict(IMAGE)
    found = result.sample.pred_instances
    assert 0 < len(found) <= 8
    assert found.masks.shape == (len(found), 90, 131)
    picture, legend = draw_result(detector, IMAGE, result, threshold=0)
    assert picture.shape == IMAGE.shape
    assert (picture != IMAGE[..., ::-1]).any()
    names = {detector.class_name(i) for i in found.labels.tolist()}
    assert {entry.name for entry in legend} == names
    # Random weights are sure of themselves: scores of 1 occur.
    # On one colour, since matplotlib 3.10 moves pixels of such small pictures.
    flat = np.full_like(IMAGE, 128)
    nothing, legend = draw_result(detector, flat, result, threshold=1.01)
    assert (nothing == flat).all()
    assert legend == []
    something, _ = draw_result(detector, flat, result, threshold=0)
    assert (something != flat).any()


@pytest.mark.parametrize('form', [dict(deploy=True), dict(prepare='float32')])
def test_other_forms_find_the_same(detector_files, detector, form):
    switched = open_model(*detector_files, **form)
    assert switched.model.backbone.deploy
    found = [m.predict(IMAGE).sample.pred_instances for m in (detector, switched)]
    for name in ('bboxes', 'scores'):
        torch.testing.assert_close(found[1][name], found[0][name], rtol=1e-3, atol=1e-3)
    assert torch.equal(found[0].labels, found[1].labels)


def test_overlay_file(detector_files, tmp_path, capsys):
    cv2.imwrite(str(tmp_path / 'a.png'), IMAGE)
    files = map(str, detector_files)
    out = tmp_path / 'out'
    assert show_all(str(tmp_path / 'a.png'), *files, out, threshold=0) == []
    written = cv2.imread(str(out / 'a.png'))
    assert written.shape[0] >= 90
    assert written.shape[1] > 131
    assert '1 picture in' in capsys.readouterr().out


@pytest.mark.parametrize('threshold', [0, 1])
def test_page_shows_no_probabilities(detector, tmp_path, threshold):
    cv2.imwrite(str(tmp_path / 'a.png'), IMAGE)
    shown = show(detector, str(tmp_path / 'a.png'), threshold)
    assert shown.top is None
    assert bool(shown.legend) == (threshold == 0)
