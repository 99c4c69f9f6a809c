"""A small training, and real kills of it in a forked process."""

import os
import signal
import traceback
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import distributed, nn

from pelk_mm.engine import FiniteLossHook, IterationSeedHook
from pelk_mm.sparsity import DynamicSparsityHook


@pytest.fixture(autouse=True, scope='module')
def _forks(one_thread):
    """Trainings on the CPU, in processes that can be forked: with one thread."""
    if torch.cuda.is_initialized():
        pytest.skip('CUDA has been started in this process: it cannot be forked')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('mmengine.device.utils.DEVICE', 'cpu')
        yield


class Small(BaseModel):
    """Convolution, norm and dropout: weights, statistics and random numbers."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3)
        )
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(8, 2)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        features = self.backbone(torch.stack(inputs)).mean((2, 3))
        scores = self.head(self.dropout(features))
        return dict(loss_cls=scores.square().mean()) if mode == 'loss' else scores


class Noise(torch.utils.data.Dataset):
    """Images of an index and of what the transforms draw."""

    def __len__(self):
        return 16

    def __getitem__(self, index):
        torch_noise = torch.randn(3, 9, 9)
        return dict(inputs=torch_noise + index / 16)


@pytest.fixture(scope='session')
def make_small():
    """Makes a runner of the small training in a folder."""
    count = iter(range(1000))

    def make(
        folder,
        iters=7,
        model=None,
        epochs=False,
        sparse=False,
        hooks=(),
        workers=0,
        checkpoint=None,
        lr=0.01,
        ranks=1,
        data=None,
        sampler=None,
        **kwargs,
    ):
        torch.manual_seed(0)
        hooks = [*hooks, EMAHook(momentum=0.1), FiniteLossHook()]
        if sparse:
            hooks.append(DynamicSparsityHook(init='erk', update_interval=2))
        every = dict(interval=1 if epochs else 2, by_epoch=epochs)
        loading = dict(batch_size=4, num_workers=workers)
        optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=lr))
        return Runner(
            model=model or Small(),
            work_dir=str(folder),
            train_dataloader=dict(
                dataset=data or Noise(),
                **loading,
                persistent_workers=workers > 0,
                sampler=sampler
                or dict(
                    type='DefaultSampler' if epochs else 'InfiniteSampler',
                    shuffle=True,
                ),
            ),
            train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=4)
            if epochs
            else dict(type='IterBasedTrainLoop', max_iters=iters),
            optim_wrapper=kwargs.pop('optim_wrapper', optim_wrapper),
            param_scheduler=dict(type='PolyLR', by_epoch=False, end=16),
            default_hooks=dict(
                logger=dict(type='LoggerHook', interval=100),
                checkpoint=dict(type='SafeCheckpointHook', **every)
                | (checkpoint or {}),
                iteration_seed=IterationSeedHook(),
            ),
            custom_hooks=hooks,
            log_processor=dict(by_epoch=epochs),
            randomness=dict(seed=3),
            experiment_name=f'small_{os.getpid()}_{next(count)}',
            default_scope='mmengine',
            log_level='ERROR',
            cfg=dict(
                optim_wrapper=optim_wrapper,
                model_wrapper_cfg=dict(
                    type='MMDistributedDataParallel', device_ids=None
                ),
            ),
            launcher='pytorch' if ranks > 1 else 'none',
            **kwargs,
        )

    return make


@contextmanager
def dying_at(owner, name, number, part=1.0):
    """Has the process kill itself in a call of a function, the first of which is 1.

    Args:
        owner: Class or module of the function.
        name: Its name.
        number: Of the call in which the process dies.
        part: Share of the bytes that are written before, where it writes bytes.
    """
    original = getattr(owner, name)
    calls = iter(range(1, 10**6))

    def call(*args, **kwargs):
        if next(calls) < number:
            return original(*args, **kwargs)
        if name == 'write_bytes':
            path, content = args
            original(path, content[: int(part * len(content))])
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError('a killed process does not go on')

    setattr(owner, name, call)
    try:
        yield
    finally:
        setattr(owner, name, original)


def run_forked(function):
    """Runs a function in a forked process; returns the signal that ended it, or 0."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            function()
            status = 0
        finally:
            # Neither pytest's handlers nor the parent's buffers.
            os._exit(status)
    return read_status(os.waitpid(child, 0)[1])


def read_status(status):
    """The signal that ended a process, or 0 where it ended well."""
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status)
    assert os.WEXITSTATUS(status) == 0, 'the training in the forked process failed'
    return 0


def run_two_ranks(store, function):
    """Runs a function in two connected processes; returns what each made of its rank.

    Args:
        store: Path of a new file by which they find each other.
        function: Called with the rank; returns what `torch.load` reads with weights.
    """
    children = []
    for rank in range(2):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
                distributed.init_process_group(
                    'gloo', f'file://{store}', rank=rank, world_size=2
                )
                torch.save(function(rank), f'{store}_{rank}')
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        children.append(child)
    statuses = [os.waitpid(child, 0)[1] for child in children]
    assert [read_status(status) for status in statuses] == [0, 0]
    return [torch.load(f'{store}_{rank}', weights_only=True) for rank in range(2)]


def differing(checkpoint, expected):
    """Names of the tensors that differ in any bit between two states."""
    assert checkpoint.keys() == expected.keys()
    return [
        name
        for name, value in expected.items()
        if not torch.equal(checkpoint[name], value)
    ]


def temporary_files(folder):
    """Files that an unfinished write left."""
    return [path.name for path in Path(folder).rglob('.*')]


@pytest.fixture(scope='session')
def kills():
    """The functions above, for the tests that kill."""
    return SimpleNamespace(
        dying_at=dying_at,
        run_forked=run_forked,
        run_two_ranks=run_two_ranks,
        read_status=read_status,
        differing=differing,
        temporary_files=temporary_files,
    )
