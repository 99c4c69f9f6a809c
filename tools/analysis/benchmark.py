"""Time a config's model: eager, prepared, compiled, ONNX Runtime and OpenVINO.

Forms compute the same images with the same weights in turns, each in a process of its
own, beside Swin and ConvNeXt of like size where they are installed. What differs from
the eager model is not timed, and says so.
"""

import argparse
import json
import os
import sys
from collections.abc import Collection
from pathlib import Path

from mmengine.config import DictAction

#: What is measured by default, and what may be asked for beyond that.
ENGINES = ('eager', 'deployed', 'prepared', 'compiled', 'onnxruntime', 'openvino')
OTHER_ENGINES = (
    'prepared_compiled',
    'plain',
    'plain_compiled',
    'onnxruntime_factored',
    'openvino_factored',
)
EXIT_CODES = """exit codes:
  0  something was measured; rows of what was not say why
  1  nothing could be measured
  2  the command line is wrong
"""


def positive(text: str) -> int:
    """Read a whole number from 1 up."""
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not a positive whole number')
    return number


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('config', help='config of a segmenter or a detector')
    parser.add_argument(
        '--part',
        choices=('backbone', 'whole'),
        help='run the backbone, with the neck if there is one, or the whole model: '
        'logits of a segmenter, predictions of a detector, which only eager and '
        'deployed can (default: whole; backbone for detectors)',
    )
    parser.add_argument('--checkpoint', help='weights (default: random ones)')
    parser.add_argument(
        '--shape',
        type=positive,
        nargs=2,
        metavar=('H', 'W'),
        help='height and width of the images (default: as get_flops)',
    )
    parser.add_argument(
        '--batch', type=positive, default=1, help='images at a time (%(default)s)'
    )
    parser.add_argument(
        '--engines',
        nargs='+',
        choices=(*ENGINES, *OTHER_ENGINES),
        default=[],
        metavar='FORM',
        help=f'forms to measure beside eager, of {", ".join(ENGINES)} (default: these) '
        f'and {", ".join(OTHER_ENGINES)}; prepared ones are by prepare_for_inference, '
        'plain ones in nn.Conv2d and nn.Linear, and factored ones have box sums',
    )
    parser.add_argument(
        '--deploy', action='store_true', help='the same as --engines deployed'
    )
    parser.add_argument(
        '--compile', action='store_true', help='the same as --engines compiled'
    )
    parser.add_argument(
        '--as-trained',
        action='store_true',
        help='compile and export the form that is trained, not the deployment form',
    )
    parser.add_argument(
        '--against',
        nargs='*',
        metavar='MODEL',
        help='what to compare with: swin_ or convnext_ tiny, small, base or large in '
        'the place of the backbone, or other configs; nothing for none (default: Swin '
        'and ConvNeXt of the size nearest)',
    )
    parser.add_argument(
        '--amp',
        action='store_true',
        help='compute in bfloat16 on the CPU, in float16 on CUDA, by autocast',
    )
    parser.add_argument(
        '--channels-last', action='store_true', help="torch's forms in that layout"
    )
    parser.add_argument(
        '--device', choices=('cpu', 'cuda'), help='(default: cuda where there is one)'
    )
    parser.add_argument(
        '--threads',
        type=positive,
        help="threads of every form on the CPU (default: torch's own number)",
    )
    parser.add_argument(
        '--iters',
        type=positive,
        default=20,
        help='least number of inferences of each form (%(default)s)',
    )
    parser.add_argument(
        '--seconds', type=float, default=0.0, help='least time for all of them together'
    )
    parser.add_argument(
        '--in-process',
        action='store_true',
        help='all forms in this process: starts sooner, but memory on the CPU is '
        'unknown and what kills one form ends all',
    )
    parser.add_argument('--json', type=Path, help='write everything to this file')
    parser.add_argument('--markdown', type=Path, help='write the table to this file')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        help='key=value ... for CONFIG',
    )
    args = parser.parse_args(argv)
    if not args.seconds >= 0:
        parser.error(f'--seconds {args.seconds} is negative')
    if args.shape and min(args.shape) < 32:
        parser.error(f'--shape {args.shape[0]} {args.shape[1]}: images are too small')
    for option in ('json', 'markdown'):
        path = getattr(args, option)
        folder = path and path.absolute().parent
        if path and (path.is_dir() or not folder.is_dir()):
            parser.error(f'--{option} {path} is not a file in an existing folder')
        if path and not os.access(folder, os.W_OK):
            parser.error(f'--{option} {path}: nothing can be written to {folder}')
    return args


def find_models(names: list[str] | None, known: Collection[str]) -> list[str] | None:
    """Replace the names of our configs among what --against has by their paths.

    Raises:
        ValueError: If a name is none of a model, of a file or of a config.
    """
    if names is None:
        return None
    from pelk_mm_cli import config_path

    paths = []
    for name in names:
        try:
            paths.append(
                name
                if name in known or Path(name).is_file()
                else str(config_path(name))
            )
        except FileNotFoundError as error:
            raise ValueError(
                f'--against {name} is none of {", ".join(known)}, and {error}'
            ) from error
    return paths


def main(argv: list[str] | None = None) -> int:
    """Measure, print and write.

    Returns:
        The exit code.
    """
    args = parse_args(argv)
    # After the arguments: a wrong one should not wait for torch to load.
    import torch

    from pelk_mm.analysis import throughput
    from pelk_mm.analysis.engines import Setting, versions
    from pelk_mm.analysis.from_config import image_shape
    from pelk_mm.analysis.machine import describe_machine, load
    from pelk_mm.analysis.subjects import COMPETITORS, plan_subjects
    from pelk_mm.analysis.workers import LocalWorker, ProcessWorker
    from pelk_mm.files import write_atomically

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    prog = Path(sys.argv[0]).name
    device = args.device or ('cuda' if torch.cuda.is_available() else 'cpu')
    if device == 'cuda' and not torch.cuda.is_available():
        say(f'{prog}: --device cuda: torch {torch.__version__} finds no NVIDIA GPU')
        return 1
    engines = [*args.engines, *['deployed'] * args.deploy, *['compiled'] * args.compile]
    try:
        subjects = plan_subjects(
            args.config,
            find_models(args.against, COMPETITORS),
            part=args.part,
            options=args.cfg_options,
            checkpoint=args.checkpoint,
        )
        cfg = subjects[0].read()
        setting = Setting(
            tuple(args.shape or image_shape(cfg)),
            args.batch,
            device,
            args.amp,
            args.channels_last,
            args.threads or torch.get_num_threads(),
            args.as_trained,
        )
        for note in throughput.caveats(setting, subjects[0], cfg):
            say(f'note: {note}')
        load_before = load()
        rows = throughput.measure(
            subjects,
            engines or ENGINES,
            setting,
            LocalWorker if args.in_process else ProcessWorker,
            args.iters,
            args.seconds,
            say,
        )
    except (ValueError, throughput.NothingMeasuredError) as error:
        say(f'{prog}: {error}')
        return 1
    machine = describe_machine(setting.threads, device)
    machine |= {'load before': load_before, **versions(engines or ENGINES)}
    report = throughput.report(rows, setting, subjects[0], machine)
    print(report)
    found = {
        'config': args.config,
        'machine': machine,
        'setting': throughput.describe_setting(setting, subjects[0]),
        'rows': throughput.results(rows, setting.batch),
    }
    texts = {args.json: json.dumps(found, indent=1), args.markdown: report}
    for path, text in texts.items():
        if path is None:
            continue
        try:
            with write_atomically(path) as temporary:
                temporary.write_text(f'{text}\n')
        except OSError as error:
            say(f'{prog}: {path} cannot be written: {error}')
            return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
