"""Coverage-guided fuzzing of a reader with atheris, for as long as one likes.

`pip install atheris`, then

    python tests/reliability/fuzz_readers.py checkpoint --seconds 300

An input that raises anything but the reader's own error, or takes too long or too much
memory, ends it and is kept under a name like ``crash-...``. Its corpus starts from the
small files that the tests damage too and grows in a folder; with --corpus in a lasting
one.
"""

import argparse
import contextlib
import importlib
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

try:
    import atheris
except ImportError:
    sys.exit('fuzz_readers.py: atheris is not installed; `pip install atheris`')

#: What is watched for new branches; with torch's parts all of torch would be.
WATCHED = [
    'pelk_mm.checkpoints',
    'pelk_mm.analysis.logs',
    'pelk_mm.analysis.sparsity_report',
    'pelk_mm.config_types',
    'pelk_mm.engine.dataset_check',
    'pelk_mm.inference.images',
]

#: Ending of the file that each reader gets.
READERS = {
    'checkpoint': '.pth',
    'mmengine': '.pth',
    'coco': '.json',
    'log': '.json',
    'yaml': '.yaml',
    'json': '.json',
    'image': '.png',
}


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('reader', choices=READERS)
    parser.add_argument('--seconds', type=int, default=60)
    parser.add_argument('--corpus', type=Path, help='folder of inputs; made if missing')
    return parser.parse_args()


def find_reader(name: str) -> Callable[[Path], Any]:
    """The reader, and in what it leaves off if a file is damaged: ValueError."""
    with atheris.instrument_imports(include=WATCHED):
        files = importlib.import_module('pelk_mm.checkpoints.files')
        loaders = importlib.import_module('pelk_mm.checkpoints.loaders')
        weights = importlib.import_module('pelk_mm.checkpoints.weights')
        sparsity = importlib.import_module('pelk_mm.analysis.sparsity_report')
        logs = importlib.import_module('pelk_mm.analysis.logs')
        config_types = importlib.import_module('pelk_mm.config_types')
        coco_file = importlib.import_module('pelk_mm.engine.dataset_check.coco_file')
        decoding = importlib.import_module('pelk_mm.engine.dataset_check.images')
        images = importlib.import_module('pelk_mm.inference.images')

    def checkpoint(path: Path) -> None:
        content = files.read_checkpoint(path)
        tensors = weights.select_weights(content).tensors
        weights.check_tensors(tensors)
        sparsity.format_table(sparsity.read_layers(content))

    def log(path: Path) -> None:
        run = logs.read_run(path)
        logs.format_table([run], ['run'], logs.usual_keys([run]))

    def image(path: Path) -> None:
        decoding.decode_whole(path.read_bytes())
        images.image_size(path)

    return {
        'checkpoint': checkpoint,
        'mmengine': lambda path: loaders.load_from_local(str(path)),
        'coco': lambda path: coco_file.check_coco_file(
            str(path), ['a', 'b'], masks=True, evaluated=True
        ),
        'log': log,
        'yaml': config_types.read_config,
        'json': config_types.read_config,
        'image': image,
    }[name]


def seeds(name: str, tests: ModuleType) -> list[bytes]:
    """Small inputs to begin with."""
    import torch

    if name in ('checkpoint', 'mmengine'):
        content = dict(
            meta=dict(iter=1, time='x'),
            state_dict={'a.weight': torch.ones(2, 2), 'b.bias': torch.zeros(3)},
            sparsity=dict(masks={'a.weight': torch.ones(2, 2).bool()}, dense=[]),
        )
        weights = importlib.import_module('reliability.mutate_weights')
        return [weights.saved(content, zipped) for zipped in (True, False)]
    if name == 'coco':
        return [json.dumps(tests.COCO).encode()]
    if name == 'log':
        return [tests.LOG.encode()]
    if name == 'image':
        return list(tests.sample_images().values())
    return [json.dumps(tests.JSON_CONFIG).encode(), b'a: &a [1]\nb: *a\n']


def main() -> None:
    """Fuzz."""
    args = parse_args()
    reader = find_reader(args.reader)
    # The tests beside this, as a package.
    package = ModuleType('reliability')
    package.__path__ = [str(Path(__file__).parent)]
    sys.modules['reliability'] = package
    texts = importlib.import_module('reliability.hostile_texts')
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, f'input{READERS[args.reader]}')
        corpus = args.corpus or Path(folder, 'corpus')
        corpus.mkdir(parents=True, exist_ok=True)
        for number, content in enumerate(seeds(args.reader, texts)):
            (corpus / f'seed{number}').write_bytes(content)

        def one_input(content: bytes) -> None:
            file.write_bytes(content)
            with contextlib.suppress(ValueError):  # all our errors are
                reader(file)

        options = [
            f'-max_total_time={args.seconds}',
            '-timeout=10',
            '-rss_limit_mb=4096',
            '-max_len=65536',
            '-print_final_stats=1',
        ]
        atheris.Setup([sys.argv[0], *options, str(corpus)], one_input)
        atheris.Fuzz()


if __name__ == '__main__':
    main()
