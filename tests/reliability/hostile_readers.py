"""What every tool does with a checkpoint's contents, on models that are built once."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmengine.model import revert_sync_batchnorm
from mmengine.runner import load_checkpoint

from pelk_mm.analysis.open_backbone import find_backbone, load_backbone
from pelk_mm.analysis.receptive_field_models import _load
from pelk_mm.analysis.sparsity_report import format_table, read_layers
from pelk_mm.analysis.subjects import load_weights as benchmark_weights
from pelk_mm.backbones.weights import before_init
from pelk_mm.checkpoints.files import CheckpointError, read_checkpoint
from pelk_mm.config_types import read_config
from pelk_mm.conversion.convert import convert_checkpoint
from pelk_mm.conversion.notes import find_dataset_meta, plain_meta
from pelk_mm.conversion.trained import build_model, fill, load_weights, require_fit
from pelk_mm.engine.resume import find_fault, find_resume_point
from pelk_mm.inference.models import dataset_meta

from .watched import Call, start_clock


def reader(
    name: str,
    function: Callable[[Path, Path], Any],
    error: type[Exception] = CheckpointError,
) -> Call:
    """A function that may raise an error, which a tool prints, as a call."""

    def call(file: Path, out: Path) -> None:
        try:
            function(file, out)
        except error as problem:
            raise SystemExit(f'{name}: {problem}') from problem

    return Call(name, call)


def checkpoint_readers(config: Path) -> list[Call]:
    """A call for what each tool does with a checkpoint, without the rest of it."""
    cfg = read_config(config)
    model = revert_sync_batchnorm(build_model(cfg))
    backbone, place = find_backbone(cfg)
    scratch = copy.deepcopy(model)

    def deploy(file: Path, out: Path) -> None:  # switch_to_deploy and export_onnx
        weights, meta = load_weights(file)
        fill(model, weights, file)
        plain_meta(meta)
        find_dataset_meta(meta)

    def inference(file: Path, out: Path) -> None:  # image_demo and app
        weights, meta = load_weights(file)
        load_checkpoint(scratch, str(file), map_location='cpu')
        require_fit(scratch, weights, file, leftovers=True)
        dataset_meta(cfg, 'mmseg', meta)

    def start(file: Path, out: Path) -> None:  # train with an init_cfg
        scratch.backbone.init_cfg = dict(
            type='Pretrained', checkpoint=str(file), prefix='backbone.'
        )
        before_init(scratch.backbone)

    def report(file: Path, out: Path) -> None:
        format_table(read_layers(read_checkpoint(file)))

    def resume(file: Path, out: Path) -> None:
        out.joinpath('last_checkpoint').write_text(str(file))
        find_fault(file)
        find_resume_point(out, file.parent, 'iter_{}.pth')

    calls = [
        reader(
            'convert_checkpoint',
            lambda file, out: convert_checkpoint(file, out / 'x.pth', strict=False),
        ),
        reader('switch_to_deploy, export_onnx', deploy),
        reader('image_demo, app', inference, ValueError),
        reader('benchmark', lambda file, out: benchmark_weights(scratch, file)),
        reader(
            'visualize_kernels',
            lambda file, out: load_backbone(backbone, place, file),
            ValueError,
        ),
        reader('visualize_erf', lambda file, out: _load(scratch.backbone, file)),
        reader('sparsity_report', report, ValueError),
        reader(
            'load_from, test',
            lambda file, out: load_checkpoint(scratch, str(file), map_location='cpu'),
        ),
        reader('init_cfg', start),
        reader('resume', resume),
    ]
    return [_in_turn(calls)]


#: Calls that read a file by another function than `read_checkpoint`, or first.
_ENTRANCES = 3


def _in_turn(calls: list[Call]) -> Call:
    """Calls one after the other as one, which saves looking around in between.

    What `read_checkpoint` refuses ends the calls that begin with it; so then only those
    are made that have another entrance.
    """

    def call(file: Path, out: Path) -> None:
        try:
            read_checkpoint(file)
            chosen = calls
        except CheckpointError:
            chosen = calls[-_ENTRANCES:]
        ends = []
        for number, each in enumerate(chosen):
            folder = out / str(number)
            folder.mkdir()
            start_clock()
            try:
                each.function(file, folder)
            except SystemExit as end:
                ends.append(str(end))
        print(f'{len(ends)} of {len(calls)} refuse: ', *ends[:1])

    return Call('readers', call)
