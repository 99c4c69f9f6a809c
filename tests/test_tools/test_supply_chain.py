import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ['torch', 'openmmlab', 'onedl', 'supply']


@pytest.fixture(scope='module')
def supply_chain():
    sys.path.insert(0, str(ROOT / 'tools'))
    try:
        spec = importlib.util.spec_from_file_location(
            'supply_chain', ROOT / 'tools' / 'supply_chain.py'
        )
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
        sys.modules.pop('setup_env', None)
    return module


def pinned(supply_chain, *names):
    """Requirements of locks, without their hashes."""
    entries = [entry for name in names for entry in supply_chain.read_lock(name)]
    return [Requirement(entry.partition(' \\')[0]) for entry in entries]


def normal(name):
    return re.sub(r'[-_.]+', '-', name).lower()


@pytest.mark.parametrize('python', ['3.10', '3.11', '3.12'])
@pytest.mark.parametrize('stack', ['openmmlab', 'onedl', 'supply'])
def test_lock_has_what_the_extras_ask_for(supply_chain, stack, python):
    extras, locks = (['build', stack, 'dev'], ['torch', stack])
    if stack == 'supply':
        extras, locks = ['supply'], ['supply']
    here = dict(
        python_version=python,
        python_full_version=f'{python}.1',
        sys_platform='linux',
        platform_machine='x86_64',
    )
    found = {}
    for pin in pinned(supply_chain, *locks):
        if pin.marker is None or pin.marker.evaluate(here):
            assert normal(pin.name) not in found, 'two versions at once'
            found[normal(pin.name)] = str(pin.specifier).removeprefix('==')
    for line in supply_chain.read_extras(*extras):
        asked = Requirement(line)
        assert asked.specifier.contains(found[normal(asked.name)]), line


def test_locked_torch_is_the_one_that_make_installs(supply_chain):
    torch = [pin for pin in pinned(supply_chain, 'torch') if pin.name == 'torch']
    makefile = (ROOT / 'Makefile').read_text()
    assert f'TORCH ?= {torch[0]}\n' in makefile
    assert len(torch) == 1


@pytest.mark.parametrize('name', LOCKS)
def test_lock_names_no_host_and_no_path(name):
    text = (ROOT / 'requirements' / f'{name}.txt').read_text()
    assert '://' not in text
    assert not re.search(r'^-|\s/', text, re.MULTILINE)


#: What `cyclonedx-py` prints of a wheel that was compiled here.
PRINTED = dict(
    components=[
        dict(
            name='mmcv',
            externalReferences=[
                dict(type='website', url='https://example.org/mmcv/docs'),
                dict(type='distribution', url='file:///home/me/.cache/mmcv.whl'),
            ],
        )
    ],
    metadata=dict(component=dict(name='pelk_mm')),
)


def test_list_of_packages_has_our_version_and_no_paths(supply_chain):
    listed = json.loads(supply_chain.complete(json.dumps(PRINTED)))
    (component,) = listed['components']
    assert [each['type'] for each in component['externalReferences']] == ['website']
    version = (ROOT / 'pelk_mm' / 'version.py').read_text()
    assert f"'{listed['metadata']['component']['version']}'" in version


@pytest.mark.parametrize(
    'text', ['/home/me/wheels', 'built in /opt/x/y', 'file:a', r'C:\\me', '"/a/b/"']
)
def test_path_in_the_list_is_an_error(supply_chain, text):
    printed = dict(PRINTED, properties=[dict(name='cwd', value=text)])
    with pytest.raises(ValueError, match='contains a path'):
        supply_chain.complete(json.dumps(printed))


def test_list_of_no_environment(supply_chain, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'cyclonedx', type(sys)('cyclonedx'))
    for name in ('schema', 'validation', 'validation.json'):
        module = type(sys)(f'cyclonedx.{name}')
        module.SchemaVersion = module.JsonStrictValidator = None
        monkeypatch.setitem(sys.modules, f'cyclonedx.{name}', module)
    with pytest.raises(SystemExit, match='is no environment; `make env` makes one'):
        supply_chain.sbom(tmp_path, tmp_path / 'sbom.json')
    assert list(tmp_path.iterdir()) == []


def test_file_is_written_whole_or_not_at_all(supply_chain, tmp_path, monkeypatch):
    path = tmp_path / 'sbom.json'
    supply_chain.write(path, 'first')
    assert path.read_text() == 'first'
    monkeypatch.setattr(supply_chain.os, 'fsync', lambda number: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        supply_chain.write(path, 'second')
    assert path.read_text() == 'first'
    assert list(tmp_path.iterdir()) == [path]
