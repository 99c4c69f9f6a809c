"""Damaged configs, annotations, images and logs: one sentence, and nothing else."""

import json
import random

import pytest

from .hostile_texts import JSON_CONFIG, Texts, text_tasks
from .hostile_tools import make_data, quiet_environment
from .mutate_texts import mutate_json
from .watched import watch, with_baselines


@pytest.fixture(scope='module')
def texts(tmp_path_factory):
    """Undamaged data, and what damages it."""
    quiet_environment()
    folder = tmp_path_factory.mktemp('texts') / 'data'
    make_data(folder)
    return Texts(folder)


def require_harmless(texts, cases, folder):
    """Fails with the first of what calls did that they must not do."""
    calls, tasks = text_tasks(texts, cases)

    def write(case, room):
        if case >= 0:
            return texts.write(case, room)
        path = room.input / 'config.json'
        path.write_text(json.dumps(JSON_CONFIG))
        return path

    # Reading a config and building its model is the most that any of them does. Once
    # here, so that what it imports is there in all processes.
    sound = folder / 'config.json'
    sound.write_text(json.dumps(JSON_CONFIG))
    for call in calls[:5]:
        call.function(sound, folder)
    [first, *_] = with_baselines(write, [calls[2]], folder / 'baseline')
    calls = [call._replace(baseline=first.baseline) for call in calls]
    for outcome in watch(texts.write, calls, tasks, folder / 'damaged'):
        assert not outcome.faults, (texts.kind(outcome.case), outcome)


@pytest.mark.long
def test_who_reads_texts(texts, tmp_path):
    require_harmless(texts, range(48), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize('part', range(4))
def test_who_reads_texts_on_two_thousand_files(texts, tmp_path, part):
    require_harmless(texts, range(500 * part, 500 * (part + 1)), tmp_path)


def test_a_case_is_the_same_whatever_came_before():
    text = json.dumps(JSON_CONFIG)
    first = [mutate_json(random.Random(n), text) for n in range(200)]
    again = [mutate_json(random.Random(n), text) for n in reversed(range(200))]
    assert first == again[::-1]
