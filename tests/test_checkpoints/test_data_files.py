import os
import pickle
import subprocess
import sys

import mmengine
import numpy as np
import pytest
import yaml
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.structures import InstanceData

from pelk_mm.config_types import ConfigError, read_config

CALL = '!!python/object/apply:os.mkdir ["{}"]'


class Call:
    """Pickles into a call that makes a folder."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize('ending', ['pkl', 'pickle'])
def test_pickled_annotations_run_nothing(tmp_path, ending):
    path = tmp_path / f'train.{ending}'
    path.write_bytes(pickle.dumps(dict(data_list=Call(tmp_path / 'made'))))
    with pytest.raises(pickle.UnpicklingError, match='asks for posix.mkdir, which'):
        mmengine.load(path)
    with pytest.raises(pickle.UnpicklingError, match='PELK_MM_KEEP_LOADERS=1'):
        BaseDataset(ann_file=str(path), data_root=str(tmp_path))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
def test_pickled_annotations_are_read(tmp_path, protocol):
    boxes = np.arange(8, dtype=np.float32).reshape(2, 4)
    proposals = InstanceData(bboxes=boxes, scores=np.ones(2))
    wanted = dict(a=proposals, b=[(1, 'two', {3.0}, None, np.float32(0.5))])
    mmengine.dump(wanted, tmp_path / 'a.pkl', protocol=protocol)
    found = mmengine.load(tmp_path / 'a.pkl')
    np.testing.assert_array_equal(found['a'].bboxes, boxes)
    assert len(found['a'][:1]) == 1
    assert found['b'] == wanted['b']


@pytest.mark.parametrize('ending', ['yaml', 'yml'])
def test_config_in_yaml_runs_nothing(tmp_path, ending):
    path = tmp_path / f'config.{ending}'
    path.write_text(f'model:\n  type: {CALL.format(tmp_path / "made")}\n')
    with pytest.raises(yaml.constructor.ConstructorError, match='line 2 has the tag'):
        Config.fromfile(path)
    with pytest.raises(ConfigError, match='os.mkdir, which could run code; only plain'):
        read_config(path)
    (tmp_path / 'child.yaml').write_text(f'_base_: [{path.name}]\n')
    with pytest.raises(ConfigError, match='which could run code'):
        read_config(tmp_path / 'child.yaml')
    assert not (tmp_path / 'made').exists()


def test_config_in_yaml_that_mmengine_wrote(tmp_path):
    cfg = Config(dict(size=(2, (3, 4)), names=['a', None], rate=1e-3, on=True))
    cfg.dump(tmp_path / 'config.yaml')
    assert Config.fromfile(tmp_path / 'config.yaml').to_dict() == cfg.to_dict()


def test_readers_of_mmengine_can_be_kept(tmp_path):
    path = tmp_path / 'a.pkl'
    path.write_bytes(pickle.dumps(Call(tmp_path / 'made')))
    code = f'import pelk_mm, mmengine; mmengine.load({str(path)!r})'
    environment = {**os.environ, 'PELK_MM_KEEP_LOADERS': '1'}
    subprocess.run(
        [sys.executable, '-c', code], env=environment, check=True, timeout=99
    )
    assert (tmp_path / 'made').is_dir()
