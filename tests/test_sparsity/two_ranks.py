"""One of two processes that train together; run by test_distributed.py.

It trains twice, the second time with a mask tampered with on rank 1, and writes down
what its masks were after every iteration and with which error it ended.
"""

import json
import sys
from pathlib import Path

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

sys.path.insert(0, str(Path(__file__).parent))
from conftest import Classifier, Images

from pelk_mm.sparsity import DynamicSparsityHook

ITERS, INTERVAL = 12, 3


class Watch(Hook):
    priority = 'LOWEST'

    def __init__(self, sparsity, tampers):
        self.sparsity = sparsity
        self.tampers = tampers
        self.log = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        masks = self.sparsity.masks
        weights = [p.detach().double().sum() for p in runner.model.parameters()]
        self.log.append([masks.checksum(), masks.active, float(sum(weights))])
        if self.tampers and runner.iter == 7:
            mask = next(iter(masks.masks.values())).flatten()
            mask[0] = 1 - mask[0]


def train(rank, work_dir, tampered):
    sparsity = DynamicSparsityHook(update_interval=INTERVAL)
    watch = Watch(sparsity, tampered and rank == 1)
    runner = Runner(
        model=Classifier(),
        work_dir=work_dir,
        launcher='pytorch',
        cfg=dict(
            model_wrapper_cfg=dict(type='MMDistributedDataParallel', device_ids=None)
        ),
        train_dataloader=dict(
            dataset=Images(),
            batch_size=4,
            num_workers=0,
            sampler=dict(type='InfiniteSampler', shuffle=True),
        ),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=ITERS),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.01)),
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=100)
        ),
        custom_hooks=[sparsity, watch],
        randomness=dict(seed=3),
        experiment_name=f'tampered_{tampered}',
        default_scope='mmengine',
        log_level='WARNING',
    )
    error = None
    try:
        runner.train()
    except RuntimeError as e:
        error = str(e)
    return dict(log=watch.log, error=error)


def main(rank, work_dir):
    torch.set_num_threads(1)
    # mmengine's own start-up asks for CUDA.
    torch.distributed.init_process_group('gloo')
    notes = [train(rank, work_dir, tampered) for tampered in (False, True)]
    Path(work_dir, f'rank_{rank}.json').write_text(json.dumps(notes))


if __name__ == '__main__':
    main(int(sys.argv[1]), sys.argv[2])
