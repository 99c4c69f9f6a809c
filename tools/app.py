"""Open a page in the browser: drop an image, see what a model makes of it.

Without CONFIG and CHECKPOINT the page shows what `make demo` has trained in
work_dirs/demo or, if it has not, a segmenter of street scenes, where demo/weights of a
clone has its weights. It listens on this machine alone, unless --host says otherwise,
and uploads are gone when it ends.
"""

import argparse
import signal
import sys
from pathlib import Path
from threading import Event

from pelk_mm_cli import config_argument, files_root

DEMO = Path('work_dirs/demo/training')
#: The segmenter that is shown then, trained on CamVid.
KEPT = 'upernet_pelk_narrow_camvid'


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'config',
        nargs='?',
        type=config_argument,
        help='config that the model was trained with',
    )
    parser.add_argument('checkpoint', nargs='?', help='its checkpoint')
    parser.add_argument(
        '--compare',
        nargs=2,
        metavar=('CONFIG2', 'CHECKPOINT2'),
        help='a second model, shown next to the first',
    )
    parser.add_argument(
        '--deploy',
        action='store_true',
        help='bring the backbones into their deployment form first',
    )
    parser.add_argument(
        '--prepare',
        choices=('float32', 'bfloat16'),
        help='prepare the models for inference in this data type',
    )
    parser.add_argument(
        '--device', default='cpu', help='such as cuda:0 (default: %(default)s)'
    )
    parser.add_argument(
        '--host',
        default='127.0.0.1',
        help='address to listen on (%(default)s); others, such as 0.0.0.0, let all who '
        'reach this machine use the page',
    )
    parser.add_argument(
        '--port', type=int, help='port (default: the first free one from 7860)'
    )
    parser.add_argument(
        '--max-size',
        type=float,
        default=20,
        metavar='MB',
        help='largest upload (%(default)s)',
    )
    args = parser.parse_args(argv)
    if args.config is None:
        found = find_demo(DEMO) or find_kept(files_root())
        if found is None:
            parser.error(
                f'{DEMO} has no checkpoint of the demonstration; run `make demo` in a '
                'clone of pelk_mm, or give CONFIG and CHECKPOINT'
            )
        args.config, args.checkpoint = map(str, found)
    elif args.checkpoint is None:
        parser.error('CONFIG needs a CHECKPOINT')
    if args.compare:
        try:
            args.compare[0] = config_argument(args.compare[0])
        except argparse.ArgumentTypeError as error:
            parser.error(f'--compare: {error}')
    if args.port is not None and not 0 < args.port < 65536:
        parser.error(f'--port {args.port} is not from 1 to 65535')
    if not 0 < args.max_size <= 1000:
        parser.error(f'--max-size {args.max_size:g} is not from 0 to 1000 MB')
    return args


def find_demo(folder: Path) -> tuple[Path, Path] | None:
    """Config and checkpoint that `make demo` left in a folder, if it did."""
    configs = sorted(folder.glob('*.py'))
    checkpoints = sorted(
        folder.glob('iter_*.pth'), key=lambda path: path.stat().st_mtime
    )
    if not configs or not checkpoints:
        return None
    return configs[0], checkpoints[-1]


def find_kept(root: Path) -> tuple[Path, Path] | None:
    """Config and checkpoint of `KEPT`, where the checkout has its weights."""
    checkpoint = root / 'demo' / 'weights' / f'{KEPT}.pth'
    if not checkpoint.is_file():
        return None
    return root / 'configs' / 'examples' / f'{KEPT}.py', checkpoint


def main(argv: list[str] | None = None) -> None:
    """Open the models and serve the page until Ctrl-C."""
    args = parse_args(argv)
    # After the arguments: a wrong one should not wait for torch to load.
    from pelk_mm.checkpoints.files import CheckpointError
    from pelk_mm.config_types import ConfigError
    from pelk_mm.inference.models import InferenceError, open_model
    from pelk_mm.inference.page import PageError, require_gradio, serve

    # Ending it from outside removes the uploads too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    pairs = [(args.config, args.checkpoint)]
    pairs += [tuple(args.compare)] if args.compare else []
    names = [f'{Path(config).stem}, {Path(file).name}' for config, file in pairs]
    try:
        require_gradio()
        models = [
            open_model(*pair, args.device, args.deploy, args.prepare) for pair in pairs
        ]
        with serve(models, names, args.host, args.port, args.max_size) as url:
            print(f'The page is at {url} until Ctrl-C.', flush=True)
            Event().wait()
    except KeyboardInterrupt:
        print()
    except (PageError, InferenceError, ConfigError, CheckpointError) as error:
        sys.exit(f'{Path(sys.argv[0]).name}: {error}')


if __name__ == '__main__':
    main()
