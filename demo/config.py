"""A config of configs/demo, fitted to a folder and a length."""

from pathlib import Path

from mmengine.config import Config


def load_config(
    path: Path, work_dir: Path, data_root: Path, iters: int | None, evaluations: int
) -> Config:
    """Load a config and fit it to a folder, a data set and a length.

    Args:
        path: The config file.
        work_dir: Where the training goes.
        data_root: The data set.
        iters: Number of iterations, 2 or more, or None for the config's own schedule.
        evaluations: How many evaluations `iters` iterations have.
    """
    cfg = Config.fromfile(path)
    cfg.work_dir = str(work_dir)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.data_root = str(data_root)
    if iters is not None:
        warmup, decay = cfg.param_scheduler
        warmup.end = decay.begin = min(warmup.end, iters // 2)
        decay.end = cfg.train_cfg.max_iters = iters
        cfg.train_cfg.val_interval = -(-iters // evaluations)
        hooks = cfg.default_hooks
        hooks.checkpoint.interval = iters
        hooks.logger.interval = max(1, min(hooks.logger.interval, iters // 10))
    return cfg
