"""A backend is one file and its place in the list: it gets the contract's tests."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CONTRACT = Path(__file__).with_name('test_contract.py')
ROOT = Path(__file__).resolve().parents[3]

#: Unfolds every window: the convolution as its definition reads.
TOY = """
import torch
import torch.nn.functional as F
from pelk_mm.ops import choose
from pelk_mm.ops.backends.base import Backend, dense_kernel

class Toy(Backend):
    name = 'toy'

    def why_not(self, problem):
        if problem.dtype != torch.float64:
            return f'it is exact and x is {problem.dtype}'

    def windows(self, problem, x):
        (n, c, h, w), (rows, cols) = problem.shape, problem.kernel
        x = F.pad(x, (cols // 2, cols // 2, rows // 2, rows // 2))
        return x.unfold(2, rows, 1).unfold(3, cols, 1)

    def forward(self, problem, x, weight, bias):
        kernel = dense_kernel(problem, weight)
        out = torch.einsum('nchwij,cij->nchw', self.windows(problem, x), kernel)
        if bias is not None:
            out = out + bias[:, None, None]
        return out.contiguous(memory_format=problem.memory_format)

    def dense_gradient(self, problem, x, grad):
        dense = torch.einsum('nchwij,nchw->cij', self.windows(problem, x), grad)
        return {result}

    def cost(self, problem, passes):
        return problem.planes * problem.products if problem.device == 'cpu' else 1e999

choose.BACKENDS['toy'] = Toy()
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ('result', 'right'), [('dense', True), ('1.001 * dense', False)]
)
def test_toy_backend_gets_the_numerics_tests(tmp_path, result, right):
    (tmp_path / 'toy.py').write_text(TOY.replace('{result}', result))
    finished = subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', '-p', 'toy', '-p', 'no:cacheprovider']
        + [str(CONTRACT), '-k', 'toy and values_gradients'],
        env=dict(
            os.environ,
            PYTHONPATH=f'{tmp_path}{os.pathsep}{ROOT}',
            PYTEST_ADDOPTS='',  # what it prints is counted
        ),
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    counts = dict.fromkeys(('passed', 'failed'), 0)
    for count, word in re.findall(r'(\d+) (passed|failed)', finished.stdout):
        counts[word] = int(count)
    # 13 problems in 4 dtypes, 3 of them refused with the toy's reason.
    assert sum(counts.values()) == 52, finished.stdout + finished.stderr
    assert (counts['failed'] == 0) == right
