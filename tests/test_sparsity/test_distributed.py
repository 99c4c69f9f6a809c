"""Two processes on one machine, with gloo."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name('two_ranks.py')


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


@pytest.fixture(scope='module')
def two_ranks(tmp_path_factory):
    """What each rank noted of the clean and of the tampered run."""
    work_dir = tmp_path_factory.mktemp('two_ranks')
    port = free_port()
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(rank), str(work_dir)],
            env=os.environ
            | dict(
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE='2',
                MASTER_ADDR='127.0.0.1',
                MASTER_PORT=str(port),
                OMP_NUM_THREADS='1',
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output[-3000:]
    return [json.loads((work_dir / f'rank_{r}.json').read_text()) for r in range(2)]


@pytest.mark.long
def test_masks_are_equal_on_both_ranks_at_every_update(two_ranks):
    (first, _), (second, _) = two_ranks
    assert first['error'] is None
    assert first == second
    checksums = [checksum for checksum, _, _ in first['log']]
    assert len(checksums) == 12
    assert len(set(checksums)) == 4  # at the start and after steps 3, 6 and 9
    assert len({active for _, active, _ in first['log']}) == 1


def test_a_tampered_mask_is_detected_by_both_ranks(two_ranks):
    for _, tampered in two_ranks:
        assert len(tampered['log']) == 8
        assert (
            'after 9 steps the sparsity masks of ranks [1] differ'
            in (tampered['error'])
        )
