import shutil
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config

import metafiles

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / 'configs'
#: A segmenter, a cascade that no paper's table of figures has, and the one-stage head.
COUNTED = (
    'upernet_pelk_t_ade20k',
    'cascade_mask_rcnn_slak_s_coco',
    'fcos_replknet_31b_coco',
)


def read(collection):
    path = metafiles.metafile_path(collection, CONFIGS)
    return path, yaml.safe_load(path.read_text())['Models']


@pytest.mark.parametrize('collection', metafiles.COLLECTIONS)
def test_texts_but_for_the_figures(collection):
    path, models = read(collection)
    entries = [
        metafiles.describe(
            CONFIGS / f'{model["Name"]}.py',
            model['Metadata']['Parameters'],
            model['Metadata']['FLOPs'],
        )
        for model in models
    ]
    assert metafiles.format_metafile(collection, entries) == path.read_text()


def figures():
    return {
        model['Name']: (model['Metadata']['Parameters'], model['Metadata']['FLOPs'])
        for collection in metafiles.COLLECTIONS
        for model in read(collection)[1]
    }


@pytest.mark.parametrize('name', COUNTED)
def test_figures(name):
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    assert metafiles.count(cfg) == figures()[name]


@pytest.mark.slow
def test_all_metafiles_are_current():
    for path, text in metafiles.format_metafiles(CONFIGS):
        assert text == path.read_text()


def test_writing(tmp_path, monkeypatch):
    shutil.copytree(CONFIGS / '_base_', tmp_path / '_base_')
    shutil.copy(CONFIGS / 'upernet_slak_t_ade20k.py', tmp_path)
    monkeypatch.setattr(metafiles, 'count', lambda cfg: (7, 8))
    metafiles.write_metafiles(tmp_path)
    for collection in metafiles.COLLECTIONS:
        path = metafiles.metafile_path(collection, tmp_path)
        found = yaml.safe_load(path.read_text())
        assert found['Collections'] == [metafiles.COLLECTIONS[collection]]
        if collection != 'SLaK':
            assert found['Models'] == []
            continue
        (model,) = found['Models']
        assert model['Metadata']['Parameters'] == 7
        assert model['Metadata']['FLOPs'] == 8
        assert model['Results'][0]['Metrics'] == {'mIoU (paper)': 47.6}
