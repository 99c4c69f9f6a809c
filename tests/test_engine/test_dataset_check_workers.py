"""Processes that read a data set, of which any may die."""

import os

from pelk_mm.engine.dataset_check.workers import (
    WorkerDiedError,
    run_in_processes,
    show_progress,
)


class DiesAt:
    """Returns the double of a number, and ends its process at some."""

    def __init__(self, *numbers):
        self.numbers = numbers

    def __call__(self, number):
        if number in self.numbers:
            os._exit(9)
        return 2 * number


def test_process_that_dies_is_blamed_on_its_number():
    results = dict(run_in_processes(DiesAt(3, 21), 40, workers=2))
    assert sorted(results) == list(range(40))
    died = {n for n, result in results.items() if isinstance(result, WorkerDiedError)}
    assert died == {3, 21}
    assert all(results[n] == 2 * n for n in results.keys() - died)


def test_progress_without_a_terminal_is_a_line_per_tenth(capsys):
    assert list(show_progress(range(100), 'train', 100)) == list(range(100))
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f'train: {10 * n} of 100' for n in range(1, 11)]
