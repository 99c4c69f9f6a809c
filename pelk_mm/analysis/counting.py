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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from operator import add, sub
from typing import Any

import torch
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement, InstanceData
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pelk_mm.checkpoints.files import first_line

from .shape_tensor import ShapeTensor, unknown_is_one
from .stand_ins import (
    BOX_REGIONS,
    REGIONS,
    arguments_of,
    forward_of,
    instances,
    on_regions,
)

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
    tensors: dict[str, Tensor] = {
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
        self._uncounted = [0] * len(counters)
        #: For each module that runs now, what the modules that it calls have counted.
        self._inner: list[list[int]] = []
        #: Components whose count stands.
        self._closed: set[str] = set()
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
                forward = forward_of(module)
                replace(module, 'forward', self._observed(name, module, forward))
                if hasattr(self.model, 'encode_decode') and hasattr(module, 'predict'):
                    predict = self._observed(name, module, module.predict)
                    replace(module, 'predict', predict)
                if callable(getattr(module, 'loss', None)):
                    replace(module, 'loss', self._unobserved(module.loss))
                if 'rpn_head' in name.split('.') and hasattr(module, 'predict_by_feat'):
                    replace(module, 'predict_by_feat', self._proposals)
                for method, most in REGIONS.items():
                    if 'rois' in arguments_of(module, method):
                        forward = getattr(module, method)
                        replace(module, method, on_regions(forward, most))
            yield

    def _observed(
        self, name: str, module: nn.Module, forward: Callable[..., Any]
    ) -> Callable[..., Any]:
        component = component_of(name)

        @functools.wraps(forward)
        def run(*args: Any, **kwargs: Any) -> Any:
            if self._in_loss:
                return forward(*args, **kwargs)
            before, inner = self._flops(), [0] * len(self.counters)
            self._inner.append(inner)
            complete = False
            try:
                result = forward(*args, **kwargs)
                complete = True
            except Exception as error:
                where = f'{name} ({type(module).__name__})'
                self.problems.setdefault(component, f'{where}: {_reason(error)}')
                raise
            finally:
                self._inner.pop()
                spent = list(map(sub, self._flops(), before))
                self._add(spent, inner, component if complete else '')
            sums = self.modules.setdefault(name, [0] * len(spent))
            if component not in self._closed:
                sums[:] = map(add, sums, spent)
            if name in ('backbone', 'neck'):
                self.features = result
            return result

        return run

    def _add(self, spent: list[int], inner: list[int], component: str) -> None:
        """Add what one call of a module counted.

        Each component gets what its own modules do, wherever they are called: the
        decoders of DETR's kind call the head.

        Args:
            spent: All that was counted during the call.
            inner: What the modules that it called have counted of that.
            component: The component that the rest belongs to, or '' for none.
        """
        own = list(map(sub, spent, inner))
        if self._inner:
            self._inner[-1][:] = map(add, self._inner[-1], spent)
        if not component or component in self._closed:
            self._uncounted = list(map(add, self._uncounted, own))
        else:
            sums = self.components.setdefault(component, [0] * len(own))
            sums[:] = map(add, sums, own)

    def _unobserved(self, loss: Callable[..., Any]) -> Callable[..., Any]:
        """A loss, which mm computes in some forward passes for its side effects."""

        @functools.wraps(loss)
        def run(*args: Any, **kwargs: Any) -> Any:
            before, self._in_loss = self._flops(), True
            try:
                with unknown_is_one():  # as in the checks that scores are finite
                    return loss(*args, **kwargs)
            finally:
                self._in_loss = False
                spent = list(map(sub, self._flops(), before))
                self._add(spent, [0] * len(spent), '')

        return run

    # ------------------------------------------------------------------ running

    def run(self) -> None:
        """Run the model, then alone what it did not reach."""
        reason = ''
        if isinstance(self.model, BaseModel):
            kind = type(self.model).__name__
            try:
                self._run_whole()
                reason = f'the forward pass of {kind} leaves it out'
            except Exception as error:
                reason = f'the forward pass of {kind} stops before: {_reason(error)}'
                self._refuse_part_of_list()
                self._run_alone(reason)
        else:
            self._run_alone()
        for name in self.names:
            if self._is_open(name):
                self.problems[name] = reason
        for name in self.problems:
            self._drop(name)

    def _refuse_part_of_list(self) -> None:
        """Forget lists of heads of which only some have run."""
        for name in list(self.components):
            parts = self._parts(name)
            own = [f'{name}.{number}' for number in range(len(parts))]
            if len(parts) > 1 and not self.modules.keys() >= set(own):
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

    def _run_alone(self, whole: str = '') -> None:
        """Run what nothing is known of yet on the image or on the feature maps.

        Args:
            whole: Why the whole forward pass did not reach it. That explains more than
                what a part alone complains of, which may lack arguments.
        """
        for name in self.names:
            if not self._is_open(name):
                continue
            known = dict(self.problems)
            self._closed = set(self.components)
            try:
                self._run_part(name)
            except Exception as error:
                if not name.startswith('roi_head.'):
                    self.problems = known
                self.problems.setdefault(name, whole or _reason(error))

    def _run_part(self, name: str) -> None:
        if name.startswith('roi_head.'):
            regions = self._proposals()
            self.model.roi_head(self.features, regions, [self._sample()])
            return
        for part in self._parts(name):
            part(self.image if name == 'backbone' else self.features)

    # ------------------------------------------------------------------ stand-ins

    def _proposals(self, *args: Any, **kwargs: Any) -> list[InstanceData]:
        """As many proposals as mm counts with."""
        return [instances(BOX_REGIONS)]

    def _sample(self) -> BaseDataElement:
        """What mm knows of an image, with instances and proposals."""
        height, width = self.image.shape[-2:]
        shapes = ('img_shape', 'ori_shape', 'pad_shape', 'batch_input_shape')
        sample = BaseDataElement(
            metainfo=dict.fromkeys(shapes, (height, width))
            | dict(scale_factor=(1.0, 1.0), flip=False, img_id=0, img_path='')
        )
        sample.gt_instances = instances(1)
        sample.proposals = instances(BOX_REGIONS)
        return sample


def _multiplies(module: nn.Module) -> bool:
    """Whether a module has weights that it multiplies with, not embeddings alone."""
    return any(
        parameter.ndim > 1 and not isinstance(each, nn.Embedding)
        for each in module.modules()
        for parameter in each.parameters(recurse=False)
    )


def _reason(error: Exception) -> str:
    """What an error says, in other words where it is of a compiled operator."""
    text = first_line(error)
    if 'not allocated' in text or 'data pointer' in text:
        return 'a compiled operator reads values, and there are shapes alone'
    return text
