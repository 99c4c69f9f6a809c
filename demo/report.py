"""What the demonstration shows: a score table, curves and pictures."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from mmseg.evaluation import IoUMetric

from pelk_mm.files import write_atomically

IGNORED = 255  # what mmseg makes of ADE20K's unlabelled pixels

_IGNORED_COLOUR = (255, 255, 255)
_ZOOM = 4  # label maps are enlarged, for thin outlines between classes
_TEXT, _FAINT, _BLUE, _ORANGE = '#222222', '#999999', '#1f5fa8', '#c2571a'


@dataclass
class Scores:
    """What mmseg's IoUMetric makes of one set of predictions, in percent.

    Attributes:
        aAcc: Share of the labelled pixels that are predicted correctly.
        mIoU: Mean of `IoU` over the classes in the ground truth or a prediction.
        mAcc: Mean share of each class's pixels that are predicted correctly.
        IoU: Intersection over union of each class in the ground truth.
        stray: Share of the labelled pixels predicted as classes that are nowhere in
            the ground truth; each such class counts as 0 in mIoU.
    """

    aAcc: float  # noqa: N815 - mmseg's own names
    mIoU: float  # noqa: N815
    mAcc: float  # noqa: N815
    IoU: dict[str, float]
    stray: float

    @classmethod
    def of(cls, metric: IoUMetric) -> 'Scores':
        """Score the predictions that a metric has processed."""
        areas = [sum(area) for area in zip(*metric.results, strict=True)]
        _, _, predicted, truth = areas
        scores = metric.total_area_to_metrics(*areas, metrics=metric.metrics)
        names = metric.dataset_meta['classes']
        return cls(
            **{
                name: float(100 * np.nanmean(scores[key]))
                for name, key in (('aAcc', 'aAcc'), ('mIoU', 'IoU'), ('mAcc', 'Acc'))
            },
            IoU={
                names[i]: float(100 * scores['IoU'][i])
                for i in torch.where(truth > 0)[0].tolist()
            },
            stray=float(100 * predicted[truth == 0].sum() / predicted.sum()),
        )


@dataclass
class Example:
    """One validation image, its ground truth and the prediction, (H, W) each."""

    path: Path
    ground_truth: np.ndarray
    prediction: np.ndarray

    @property
    def accuracy(self) -> float:
        """Percentage of the labelled pixels that are predicted correctly."""
        labelled = self.ground_truth != IGNORED
        return float(100 * (self.prediction == self.ground_truth)[labelled].mean())


def commonest_class(annotations: Iterable[Path]) -> int:
    """Index of the class with the most pixels in annotations of ADE20K's kind."""
    counts = np.zeros(256, np.int64)
    for path in annotations:
        counts += np.bincount(cv2.imread(str(path), -1).ravel(), minlength=256)
    return int(counts[1:].argmax())


@torch.no_grad()
def evaluate(
    model: torch.nn.Module, dataloader: Iterable, constant: int, examples: int
) -> tuple[Scores, Scores, list[Example]]:
    """Score a model and a constant prediction with mmseg's IoUMetric.

    Args:
        model: The segmentor.
        dataloader: Its validation images.
        constant: Index of the class that the constant prediction has everywhere.
        examples: How many of the images to return, the first ones.

    Returns:
        The model's scores, those of the constant prediction, and the first images.
    """
    model.eval()
    metrics = [IoUMetric(prefix=''), IoUMetric(prefix='')]
    for metric in metrics:
        metric.dataset_meta = dataloader.dataset.metainfo
    shown = []
    for batch in dataloader:
        samples = [sample.to_dict() for sample in model.val_step(batch)]
        metrics[0].process(batch, samples)
        for sample in samples:
            prediction = sample['pred_sem_seg']['data']
            if len(shown) < examples:
                truth = sample['gt_sem_seg']['data']
                shown.append(
                    Example(
                        Path(sample['img_path']),
                        truth.squeeze().cpu().numpy(),
                        prediction.squeeze().cpu().numpy(),
                    )
                )
            sample['pred_sem_seg'] = dict(data=torch.full_like(prediction, constant))
        metrics[1].process(batch, samples)
    return Scores.of(metrics[0]), Scores.of(metrics[1]), shown


def score_table(model: Scores, constant: Scores, constant_name: str) -> str:
    """Scores of the model next to those of a constant prediction, in Markdown."""
    title = f'always "{constant_name}"'
    width = max(14, len(title))
    scores = [
        (name, getattr(model, name), getattr(constant, name))
        for name in ('mIoU', 'mAcc', 'aAcc')
    ]
    scores += [
        (f'IoU {name}', model.IoU[name], constant.IoU[name]) for name in model.IoU
    ]
    rows = [
        ('', 'UperNet PeLK', title),
        (':' + 13 * '-', 13 * '-' + ':', (width - 1) * '-' + ':'),
        *((name, f'{ours:.2f}', f'{other:.2f}') for name, ours, other in scores),
    ]
    lines = [
        f'| {name:14} | {ours:>14} | {other:>{width}} |' for name, ours, other in rows
    ]
    if model.stray:
        lines += [
            '',
            f'{model.stray:.2f} % of the pixels are predicted as classes that occur '
            'nowhere in the ground truth; each of these counts as an IoU of 0 in mIoU.',
        ]
    return '\n'.join(lines) + '\n'


def write_scores(
    folder: Path, model: Scores, constant: Scores, constant_name: str
) -> str:
    """Write ``scores.md`` and ``scores.json`` into a folder; returns the table."""
    table = score_table(model, constant, constant_name)
    text = (
        '# Scores on the validation scenes, in percent\n\n'
        f"{table}\nmmseg's IoUMetric; the commonest class of the training scenes is "
        f'"{constant_name}".\n'
    )
    scores = {
        'model': asdict(model),
        'commonest_class': dict(name=constant_name, **asdict(constant)),
    }
    for name, content in (
        ('scores.md', text),
        ('scores.json', json.dumps(scores, indent=2) + '\n'),
    ):
        with write_atomically(folder / name) as temporary:
            temporary.write_text(content)
    return table


def draw_curves(scalars: Path, constant_miou: float, path: Path) -> None:
    """Draw the loss and the mIoU over a training.

    Args:
        scalars: ``scalars.json`` as mmengine's LocalVisBackend writes it.
        constant_miou: mIoU of the constant prediction, for comparison.
        path: The PNG to write.
    """
    records = [json.loads(line) for line in scalars.read_text().splitlines()]
    loss = np.array([(r['step'], r['loss']) for r in records if 'loss' in r])
    miou = np.array([(r['step'], r['mIoU']) for r in records if 'mIoU' in r])
    figure = Figure(figsize=(10, 4), layout='constrained')
    figure.suptitle('Training UperNet with a narrow PeLK', color=_TEXT, fontsize=13)
    left, right = figure.subplots(1, 2)
    left.plot(*loss.T, color=_BLUE, linewidth=1.8)
    left.set(title='Training loss', ylim=(0, None))
    right.plot(*miou.T, color=_BLUE, linewidth=1.8, marker='o', label='UperNet PeLK')
    for step, value in miou:
        right.annotate(
            f'{value:.1f}',
            (step, value),
            (0, 7),
            textcoords='offset points',
            ha='center',
            color=_TEXT,
            fontsize=9,
        )
    right.axhline(
        constant_miou, color=_ORANGE, linestyle='--', label='commonest class everywhere'
    )
    right.set(title='Validation mIoU (%)', ylim=(0, 100))
    right.legend(frameon=False, loc='best')
    for axes in (left, right):
        axes.set_xlabel('iteration')
        axes.set_xlim(0, 1.04 * max(loss[-1, 0], miou[-1, 0]))
        axes.grid(color='#e6e6e6')
        axes.spines[['top', 'right']].set_visible(False)
        axes.spines[['left', 'bottom']].set_color(_FAINT)
        axes.tick_params(colors=_TEXT)
    _save(figure, path)


def draw_examples(
    examples: Sequence[Example],
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
    path: Path,
) -> None:
    """Draw images, each with its ground truth and the prediction next to it.

    Args:
        examples: The images, one per row.
        classes: Name of each class.
        palette: Colour of each class, red, green, blue.
        path: The PNG to write.
    """
    names = dict(enumerate(classes)) | {IGNORED: 'unlabelled'}
    colours = np.full((256, 3), _IGNORED_COLOUR, np.uint8)
    colours[: len(palette)] = palette
    figure = Figure(figsize=(12, 3.35 * len(examples) + 0.65), layout='constrained')
    grid = figure.subplots(len(examples), 3, squeeze=False)
    for example, row in zip(examples, grid, strict=True):
        image = cv2.imread(str(example.path))[..., ::-1]
        panels = (
            (f'Input: {example.path.name}', image, 'bicubic'),
            ('Ground truth', _paint(example.ground_truth, colours), None),
            (
                f'Prediction: {example.accuracy:.1f} % of the pixels correct',
                _paint(example.prediction, colours),
                None,
            ),
        )
        for axes, (title, pixels, interpolation) in zip(row, panels, strict=True):
            axes.imshow(pixels, interpolation=interpolation)
            axes.set_title(title, color=_TEXT, fontsize=13)
            axes.axis('off')
    maps = [labels for e in examples for labels in (e.ground_truth, e.prediction)]
    shown = sorted(set().union(*(np.unique(labels).tolist() for labels in maps)))
    rows = -(-len(shown) // 9)
    figure.legend(
        handles=[
            Patch(
                facecolor=colours[i] / 255,
                edgecolor=_TEXT,
                linewidth=0.6,
                label=names[i],
            )
            for i in shown
        ],
        loc='outside lower center',
        ncols=-(-len(shown) // rows),
        frameon=False,
        fontsize=11,
        labelcolor=_TEXT,
    )
    _save(figure, path)


def _paint(labels: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Colour a label map; thin outlines separate classes of similar colours."""
    labels = labels.repeat(_ZOOM, 0).repeat(_ZOOM, 1)
    pixels = colours[labels]
    edge = np.zeros(labels.shape, bool)
    edge[1:] |= labels[1:] != labels[:-1]
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    pixels[edge] = 40
    return pixels


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    with write_atomically(path) as temporary:
        figure.savefig(temporary, dpi=110, format='png')
