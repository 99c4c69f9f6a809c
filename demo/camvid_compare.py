"""What `camvid.py` does with its arguments."""

import argparse
from pathlib import Path

from mmengine.config import DictAction

from camvid_runs import Run, best_runs, finish
from camvid_tables import write_tables


def _options(texts: list[str]) -> dict[str, object]:
    """Entries of configs from the command line, by dotted name."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='*', action=DictAction, default={})
    return parser.parse_args(['--cfg-options', *texts]).cfg_options


def compare(args: argparse.Namespace, root: Path) -> str:
    """Train what is not trained, write the tables, and draw or save if asked.

    Args:
        args: The command line of `camvid.py`.
        root: Folder of the checkout, in which weights are saved.

    Returns:
        The tables.

    Raises:
        ValueError: If a run cannot be finished; the tables have those before it.
    """
    options = _options(args.cfg_options)
    runs = [
        Run(
            config=config,
            seed=seed,
            folder=args.out.absolute() / config.stem / f'seed_{seed}',
            data=args.data.absolute(),
            iters=args.iters,
            options=options,
        )
        for seed in args.seeds  # so that every config has one run early
        for config in args.configs
    ]
    finished, tables = [], ''
    for number, run in enumerate(runs, 1):
        print(f'[{number}/{len(runs)}] {run.name}, seed {run.seed}', flush=True)
        result = finish(run)
        print(f'  test mIoU {result.test["mIoU"]:.2f}', flush=True)
        finished.append((run, result))
        # In the order of the configs, whatever that of the runs.
        order = sorted(finished, key=lambda each: args.configs.index(each[0].config))
        tables = write_tables(args.out, [result for _, result in order])
    if args.plot:
        # Here: without --plot nothing waits for matplotlib.
        from camvid_pictures import draw_all

        draw_all(order, args.out)
    if args.save_weights:
        from camvid_weights import save_weights

        best = best_runs(finished)
        for config in args.save_weights:
            run, result = best[config.stem]
            path = save_weights(run, result, root)
            print(f'{path}: {path.stat().st_size:,} bytes')
    return tables
