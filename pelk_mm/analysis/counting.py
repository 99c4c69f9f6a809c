"""Count the multiply-adds of a model part by part, without weights and without data.

The model's own forward pass runs once over tensors that have a shape and no values (see
`shape_tensor`), under torch's `FlopCounterMode`, which sees our operators through the
formulas that `pelk_mm.ops` registers. mmengine's and fvcore's counters trace with
torch.jit, for which the largest models would need real weights.

Where the forward pass depends on what a detector finds, numbers take the place that mm
gave them: `BOX_REGIONS` proposals for each box head and `MASK_REGIONS` for each mask
head. A part in which the pass stops, or that it never reaches, and that cannot run on
the feature maps alone either is reported with the reason.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from operator import add, sub
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from pelk_mm.checkpoints.files import first_line

from .shape_tensor import ShapeTensor

#: Regions that each head of a detector's second stage sees, by mm's convention.
BOX_REGIONS = 1000
MASK_REGIONS = 100

#: Parts that serve training alone, by mm's convention.
TRAINING_ONLY = ('auxiliary_head',)

Formulas = Mapping[Any, Callable[..., int]]


def component_of(name: str) -> str:
    """Component that a parameter or module belongs to, by its name."""
    parts = name.split('.')
    return '.'.join(parts[:2]) if parts[0] == 'roi_head' else parts[0]


@dataclass(frozen=True)
class Counts:
    """Multiply-adds of one inference, in each way of counting.

    Attributes:
        modules: By name of each module that ran, its children's included.
        components: The same by component, for those that ran.
        elsewhere: Those outside of any component.
        problems: Why a component was not counted.
    """

    modules: dict[str, list[int]]
    components: dict[str, list[int]]
    elsewhere: list[int]
    problems: dict[str, str]


def count(
    model: nn.Module, shape: tuple[int, int], formulas: Sequence[Formulas] = ({},)
) -> Counts:
    """Count the multiply-adds of a model in one inference.

    Args:
        model: A model of mmengine's kind, or a module with a ``backbone`` and perhaps a
            ``neck`` and heads; its weights may be on the meta device.
        shape: Height and width of the image.
        formulas: One entry for each way of counting: FLOPs of operators (two per
            multiply-add) that are not to be counted by their registered formulas.
    """
    was_training = model.training
    tensors = {
        f'model.{name}': ShapeTensor(tensor.detach().to('meta'))
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
        if isinstance(tensor, nn.Parameter) or tensor.is_meta
    }
    image = ShapeTensor(torch.empty(1, input_channels(model), *shape, device='meta'))
    counters = [
        FlopCounterMode(display=False, custom_mapping=dict(each)) for each in formulas
    ]
    pass_ = _Pass(model.eval(), image, counters)
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(_without_fused_attention())
            stack.enter_context(pass_.observing())
            for counter in counters:
                stack.enter_context(counter)
            whole = _Holder(model, pass_.run)
            torch.func.functional_call(whole, tensors, (), tie_weights=True)
    finally:
        model.train(was_training)
    return pass_.counts()


def input_channels(model: nn.Module) -> int:
    """Channels of the images that a model takes, those of its first convolution."""
    convs = (m for m in model.modules() if isinstance(m, nn.Conv2d))
    return next((conv.in_channels for conv in convs), 3)


@contextmanager
def _without_fused_attention() -> Iterator[None]:
    """Attention as separate operators: no counter has a formula for the fused one."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


class _Holder(nn.Module):
    """Runs a function while `functional_call` has replaced the model's tensors."""

    def __init__(self, model: nn.Module, run: Callable[[], None]) -> None:
        super().__init__()
        self.model = model
        self.run = run

    def forward(self) -> None:
        self.run()


# ------------------------------------------------------- what has compiled operators


def _region_features(module: Any, features: Tensor, rois: Tensor, *_: Any) -> Tensor:
    """What RoIAlign and RoIPool return."""
    return features.new_empty(len(rois), features.shape[1], *module.output_size)


def _extract(module: Any, features: Sequence[Tensor], rois: Tensor, *_: Any) -> Tensor:
    """What mmdet's extractor returns, whichever levels the regions are on."""
    return module.roi_layers[0](features[0], rois)


def _sampled_convolution(module: Any, x: Tensor, *_: Any) -> Tensor:
    """A deformable convolution: as many multiply-adds as the convolution it deforms."""
    if hasattr(module, 'conv_offset'):  # it computes the offsets itself
        module.conv_offset(x)
    return F.conv2d(
        x,
        module.weight,
        getattr(module, 'bias', None),
        module.stride,
        module.padding,
        module.dilation,
        module.groups,
    )


#: By class name, what stands in for the forward pass of modules of mmcv and mmdet whose
#: compiled operators read values.
STAND_INS: dict[str, Callable[..., Tensor]] = {
    'RoIAlign': _region_features,
    'RoIPool': _region_features,
    'SingleRoIExtractor': _extract,
    'DeformConv2d': _sampled_convolution,
    'ModulatedDeformConv2d': _sampled_convolution,
}


def _forward_of(module: Any) -> Callable[..., Any]:
    """A module's forward pass, or what stands in for it."""
    for base in type(module).__mro__:
        if base.__name__ in STAND_INS:
            return functools.partial(STAND_INS[base.__name__], module)
    return module.forward


# ------------------------------------------------------------------ one forward pass


class _Pass:
    """One forward pass, observed.

    Args:
        model: The model, in evaluation mode.
        image: The image, without values.
        counters: Counters, one for each way of counting.
    """

    def __init__(
        self, model: nn.Module, image: Tensor, counters: list[FlopCounterMode]
    ) -> None:
        self.model: Any = model
        self.image = image
        self.counters = counters
        self.names = {component_of(name): None for name, _ in model.named_parameters()}
        self.modules: dict[str, list[int]] = {}
        self.components: dict[str, list[int]] = {}
        self.problems: dict[str, str] = {}
        self.features: Any = None
        self.complete = False
        self._uncounted = [0] * len(counters)
        self._running: list[str] = []
        self._in_loss = False

    def _flops(self) -> list[int]:
        return [counter.get_total_flops() for counter in self.counters]

    def counts(self) -> Counts:
        """What was found; two FLOPs are one multiply-add."""
        rest = list(map(sub, self._flops(), self._uncounted))
        for name, spent in self.components.items():
            if name in self.names:
                rest = list(map(sub, rest, spent))
        halves = {
            key: {name: [flops // 2 for flops in spent] for name, spent in each.items()}
            for key, each in (('m', self.modules), ('c', self.components))
        }
        counted = {n: halves['c'][n] for n in self.names if n in halves['c']}
        return Counts(
            {n: c for n, c in halves['m'].items() if component_of(n) in counted},
            counted,
            [flops // 2 for flops in rest],
            {name: self.problems[name] for name in self.names if name in self.problems},
        )

    # ------------------------------------------------------------------ observing

    @contextmanager
    def observing(self) -> Iterator[None]:
        """Have the model's parts report here, and replace what depends on findings.

        Instance attributes do so: mm calls ``head.forward(x)`` as often as ``head(x)``,
        and of the former torch's hooks know nothing.
        """
        with ExitStack() as stack:

            def replace(module: nn.Module, name: str, function: Callable) -> None:
                module.__dict__[name] = function
                stack.callback(module.__dict__.pop, name)

            for name, module in self.model.named_modules():
                if not name:
                    continue
                replace(module, 'forward', self._observed(name, module))
                if callable(getattr(module, 'loss', None)):
                    replace(module, 'loss', self._unobserved(module.loss))
                if f'.{name}.'.find('.rpn_head.') >= 0:
                    if hasattr(module, 'predict_by_feat'):
                        replace(module, 'predict_by_feat', self._proposals)
                elif hasattr(module, '_mask_forward'):
                    replace(module, '_mask_forward', _limited(module._mask_forward))
            yield

    def _observed(self, name: str, module: nn.Module) -> Callable[..., Any]:
        forward, component = _forward_of(module), component_of(name)

        @functools.wraps(forward)
        def run(*args: Any, **kwargs: Any) -> Any:
            if self._in_loss:
                return forward(*args, **kwargs)
            outermost = component not in self._running
            before = self._flops()
            self._running.append(component)
            try:
                result = forward(*args, **kwargs)
            except Exception as error:
                where = f'{name} ({type(module).__name__})'
                self.problems.setdefault(component, f'{where}: {first_line(error)}')
                if outermost and component in self.names:
                    self._add(self._uncounted, before)
                raise
            finally:
                self._running.pop()
            self._add(self.modules.setdefault(name, [0] * len(before)), before)
            if outermost:
                self._add(
                    self.components.setdefault(component, [0] * len(before)), before
                )
            if name in ('backbone', 'neck'):
                self.features = result
            return result

        return run

    def _add(self, sums: list[int], before: list[int]) -> None:
        """Add what was counted since."""
        sums[:] = map(add, sums, map(sub, self._flops(), before))

    def _unobserved(self, loss: Callable[..., Any]) -> Callable[..., Any]:
        """A loss, which mm computes in some forward passes for its side effects."""

        @functools.wraps(loss)
        def run(*args: Any, **kwargs: Any) -> Any:
            before, self._in_loss = self._flops(), True
            try:
                return loss(*args, **kwargs)
            finally:
                self._in_loss = False
                self._add(self._uncounted, before)

        return run

    # ------------------------------------------------------------------ running

    def run(self) -> None:
        """Run the model, then alone what it did not reach."""
        reason = ''
        if isinstance(self.model, BaseModel):
            try:
                self._run_whole()
            except Exception as error:
                reason = first_line(error)
            else:
                reason = (
                    f'the forward pass of {type(self.model).__name__} leaves it out'
                )
                self.complete = True
        for name in self.names:
            if self._is_open(name) and not self.complete:
                self._run_alone(name)
            if self._is_open(name):
                self.problems[name] = reason
        for name in self.problems:
            self._drop(name)

    def _is_open(self, name: str) -> bool:
        """Whether a component serves inference and nothing is known of it yet."""
        return (
            name not in self.components
            and name not in self.problems
            and not name.startswith(TRAINING_ONLY)
            and any(map(_multiplies, self._parts(name)))
        )

    def _drop(self, name: str) -> None:
        """Forget what was counted of a component before it failed."""
        spent = self.components.pop(name, None)
        if spent and name in self.names:
            self._uncounted = list(map(add, self._uncounted, spent))

    def _run_whole(self) -> None:
        sample = self._sample()
        if hasattr(self.model, 'encode_decode'):
            # mmseg's 'tensor' mode does not know all of its heads; inference does.
            self.model.encode_decode(self.image, [sample.metainfo])
        else:
            self.model(self.image, [sample], mode='tensor')

    def _parts(self, name: str) -> list[nn.Module]:
        """Modules that run: a component, or those in it if it is a list of heads."""
        try:
            module = self.model.get_submodule(name)
        except AttributeError:  # a parameter of the model itself
            return []
        return list(module) if isinstance(module, nn.ModuleList) else [module]

    def _run_alone(self, name: str) -> None:
        """Run a component on the image, if it is the backbone, or on the maps."""
        try:
            if name.startswith('roi_head.'):
                proposals = self._proposals()
                self.model.roi_head(self.features, proposals, [self._sample()])
            elif name == 'backbone' or self.features is not None:
                for part in self._parts(name):
                    part(self.image if name == 'backbone' else self.features)
        except Exception as error:
            self.problems.setdefault(name, f'{name} alone: {first_line(error)}')

    # ------------------------------------------------------------------ stand-ins

    def _proposals(self, *args: Any, **kwargs: Any) -> list[InstanceData]:
        """As many proposals as mm counts with."""
        return [_instances(BOX_REGIONS)]

    def _sample(self) -> BaseDataElement:
        """What mm knows of an image, with instances and proposals."""
        height, width = self.image.shape[-2:]
        shapes = ('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape')
        sample = BaseDataElement(
            metainfo=dict.fromkeys(shapes, (height, width))
            | dict(scale_factor=(1.0, 1.0), flip=False, img_id=0, img_path='')
        )
        sample.gt_instances = _instances(1)
        sample.proposals = _instances(BOX_REGIONS)
        return sample


def _instances(number: int) -> InstanceData:
    """Instances that cover the upper left 64 x 64 pixels of an image."""
    return InstanceData(
        bboxes=torch.tensor([[0.0, 0.0, 64.0, 64.0]]).repeat(number, 1),
        labels=torch.zeros(number, dtype=torch.long),
        scores=torch.ones(number),
    )


def _limited(mask_forward: Callable[..., Any]) -> Callable[..., Any]:
    """Have mask heads see `MASK_REGIONS` regions of however many they are given."""
    signature = inspect.signature(mask_forward)

    @functools.wraps(mask_forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        rois = bound.arguments['rois']
        bound.arguments['rois'] = rois[:MASK_REGIONS]
        results = mask_forward(*bound.args, **bound.kwargs)
        left = len(rois) - MASK_REGIONS
        if left <= 0:
            return results
        # The caller splits them by image again.
        return tree_map_only(
            Tensor, lambda x: torch.cat([x, x[:1].expand(left, *x.shape[1:])]), results
        )

    return run


def _multiplies(module: nn.Module) -> bool:
    """Whether a module has weights that it multiplies with, not embeddings alone."""
    return any(
        parameter.ndim > 1 and not isinstance(each, nn.Embedding)
        for each in module.modules()
        for parameter in each.parameters(recurse=False)
    )
