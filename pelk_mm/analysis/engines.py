"""The forms in which a model is measured: as it is, prepared, plain and exported.

A form imports what it needs when it is created, is loaded by `load` and then computes
one inference at each call of `infer`; memory is counted from before it is loaded. What
is exported is written to files beforehand by `export`, in another process where memory
is counted, since the exporter takes much more of it than the inference.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from pelk_mm import ops
from pelk_mm.backbones import LargeKernelBackbone
from pelk_mm.conversion.factored import use_torch_convolutions
from pelk_mm.conversion.onnx_file import to_onnx
from pelk_mm.conversion.prepare import prepare_for_inference

from .from_config import build_on_meta
from .subjects import Predictions, Subject, UnavailableError


@dataclass(frozen=True)
class Setting:
    """What all forms of a run have alike.

    Attributes:
        shape: Height and width of the images.
        batch: Images at a time.
        device: Type of the device that computes.
        amp: Whether autocast may compute in 16 bits: bfloat16 on CPUs, float16 on CUDA.
        channels_last: Whether torch's forms get images and weights in that layout.
        threads: Threads that compute, in every engine.
        as_trained: Whether compiled and exported forms are made of the form that is
            trained where there is a deployment form.
    """

    shape: tuple[int, int]
    batch: int = 1
    device: str = 'cpu'
    amp: bool = False
    channels_last: bool = False
    threads: int = 1
    as_trained: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """Data type that convolutions compute in."""
        if not self.amp:
            return torch.float32
        return torch.bfloat16 if self.device == 'cpu' else torch.float16

    @property
    def memory_format(self) -> torch.memory_format:
        """Layout of the images of torch's forms."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def autocast(self) -> AbstractContextManager[Any]:
        """Computes in `dtype` where autocast does so."""
        if not self.amp:
            return nullcontext()
        return torch.autocast(self.device, self.dtype)

    def images(self, channels: int) -> Tensor:
        """Draw normalised images, the same in every process."""
        shape = (self.batch, channels, *self.shape)
        images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        return images.to(self.device).contiguous(memory_format=self.memory_format)


class TorchForm:
    """The model as torch runs it, in the form that is trained.

    Args:
        subject: What is measured.
        setting: What all forms have alike.
        folder: Where exports are written and read.
    """

    #: Packages that the form needs beyond torch, and how pip calls them.
    packages: ClassVar[dict[str, str]] = {}
    #: Whether the deployment form is run where there is one: 'no', 'yes', or 'must'.
    deployed: ClassVar[str] = 'no'
    #: Whether peripheral convolutions in torch's layers are box sums, not dense.
    factored: ClassVar[bool] = False
    #: Whether it reads a file that `export` wrote.
    exported: ClassVar[bool] = False
    #: Whether it runs on a CUDA stream of its own, and its memory is not torch's.
    own_stream: ClassVar[bool] = False

    def __init__(self, subject: Subject, setting: Setting, folder: Path) -> None:
        self.subject, self.setting, self.folder = subject, setting, folder
        if not self.exported:
            build_on_meta(subject.read())  # imports the frameworks

    def module(self) -> nn.Module:
        """Build the module in the form's state, on the device.

        Raises:
            UnavailableError: If it has no deployment form and must.
        """
        module: Any = self.subject.build()
        backbone = module.backbone
        deploys = hasattr(backbone, 'switch_to_deploy')
        done = getattr(backbone, 'deploy', False)
        if self.deployed == 'must' and not deploys:
            kind = type(backbone).__name__
            raise UnavailableError(f'{kind} has no deployment form')
        if self.deployed == 'must' and done:
            raise UnavailableError('the config asks for this form already')
        wanted = self.deployed == 'must' or (
            self.deployed == 'yes' and not self.setting.as_trained
        )
        if wanted and deploys and not done:
            backbone.switch_to_deploy()
        module = module.requires_grad_(False).to(self.setting.device)
        if self.setting.channels_last:
            module = module.to(memory_format=torch.channels_last)
        return module

    def load(self) -> None:
        """Make everything that the inference needs."""
        self.images = self.setting.images(self.subject.channels)
        self.call: Any = self.module()

    @torch.no_grad()
    def infer(self) -> Any:
        """Compute one inference."""
        with self.setting.autocast():
            return self.call(self.images)


class Deployed(TorchForm):
    """The deployment form, by `switch_to_deploy`."""

    deployed = 'must'


class Prepared(TorchForm):
    """By `prepare_for_inference`, in the setting's data type."""

    #: Whether `torch.compile` compiles its backbone.
    compiled: ClassVar[bool] = False

    def module(self) -> Any:
        """Build the module and prepare it.

        Raises:
            UnavailableError: If its backbone is none of ours, or the data type is none
                that models are prepared for.
        """
        module = self.subject.build().to(self.setting.device)
        require_ours(module)
        try:
            return prepare_for_inference(
                module, self.setting.dtype, compile=self.compiled
            )
        except ValueError as error:
            raise UnavailableError(str(error)) from error

    @torch.no_grad()
    def infer(self) -> Any:
        """Compute one inference."""
        return self.call(self.images)


class PreparedCompiled(Prepared):
    """By `prepare_for_inference`, its backbone compiled."""

    compiled = True


class Plain(TorchForm):
    """The deployment form in torch's own layers, as a rival of our operators."""

    deployed = 'yes'

    def module(self) -> Any:
        """Build the module; large kernels are expanded once."""
        return torch_module(super().module(), self.factored)

    def infer(self) -> Any:
        """Compute one inference."""
        with ops.plain():
            return super().infer()


class Compiled(TorchForm):
    """By `torch.compile`, for images of one size."""

    deployed = 'yes'

    def module(self) -> Any:
        """Build the module, which is compiled at its first call."""
        return torch.compile(require_static(super().module()), dynamic=False)


class PlainCompiled(Plain):
    """The deployment form in torch's own layers, by `torch.compile` with freezing."""

    def module(self) -> Any:
        """Build the module, which is compiled at its first call."""
        module = require_static(super().module())
        return torch.compile(module, dynamic=False, options={'freezing': True})


class Exported(TorchForm):
    """A form that another runtime computes, from a file."""

    deployed = 'yes'
    exported = True
    own_stream = True

    @torch.no_grad()
    def program(self, amp: bool) -> torch.export.ExportedProgram:
        """Record the module in torch's own operators, for images of one size."""
        module = torch_module(require_static(self.module()), self.factored)
        images = self.setting.images(self.subject.channels)
        with ops.plain(), replace(self.setting, amp=amp).autocast():
            return torch.export.export(module, (images,), strict=False)

    def export(self) -> None:
        """Write the file."""
        raise NotImplementedError

    def array(self) -> np.ndarray:
        """The images."""
        return self.setting.images(self.subject.channels).contiguous().cpu().numpy()

    def infer(self) -> Any:
        """Compute one inference."""
        return self.call()


class Onnx(Exported):
    """By ONNX Runtime."""

    packages: ClassVar = dict(
        onnxruntime='onnxruntime', onnx='onnx', onnxscript='onnxscript'
    )

    def __init__(self, subject: Subject, setting: Setting, folder: Path) -> None:
        super().__init__(subject, setting, folder)
        import onnxruntime

        self.runtime: Any = onnxruntime
        self.path = folder / 'model.onnx'
        self.provider = f'{setting.device.upper()}ExecutionProvider'
        if self.provider not in onnxruntime.get_available_providers():
            raise UnavailableError(
                f'onnxruntime {onnxruntime.__version__} has no {self.provider} here; '
                '`pip install onnxruntime-gpu` brings it'
            )

    def export(self) -> None:
        """Write the file."""
        import onnx

        onnx.save(to_onnx(self.program(self.setting.amp)), self.path)

    def load(self) -> None:
        """Load the file, and put the images on the device."""
        options = self.runtime.SessionOptions()
        options.intra_op_num_threads = self.setting.threads
        options.inter_op_num_threads = 1
        session = self.runtime.InferenceSession(
            str(self.path), options, providers=[self.provider]
        )
        device, binding = self.setting.device, session.io_binding()
        value = self.runtime.OrtValue.ortvalue_from_numpy(self.array(), device, 0)
        binding.bind_ortvalue_input(session.get_inputs()[0].name, value)

        def run() -> list[Any]:
            # Bound anew each time: outputs are allocated, as torch allocates them.
            for output in session.get_outputs():
                binding.bind_output(output.name, device, 0)
            session.run_with_iobinding(binding)
            return binding.get_outputs()

        self.call = run


class FactoredOnnx(Onnx):
    """By ONNX Runtime, peripheral convolutions as box sums."""

    factored = True


class OpenVino(Exported):
    """By OpenVINO, on the CPU."""

    packages: ClassVar = dict(openvino='openvino')

    def __init__(self, subject: Subject, setting: Setting, folder: Path) -> None:
        super().__init__(subject, setting, folder)
        if setting.device != 'cpu':
            raise UnavailableError(f'OpenVINO does not compute on {setting.device}')
        import openvino

        self.runtime: Any = openvino
        self.path = folder / 'model.xml'
        self.core = openvino.Core()
        if setting.amp and 'BF16' not in self.core.get_property(
            'CPU', 'OPTIMIZATION_CAPABILITIES'
        ):
            raise UnavailableError('OpenVINO has no bfloat16 on this processor')

    def export(self) -> None:
        """Write the file, in float32: OpenVINO itself chooses what it rounds."""
        model = self.runtime.convert_model(self.program(amp=False))
        self.runtime.save_model(model, self.path, compress_to_fp16=False)

    def load(self) -> None:
        """Load the file."""
        options = dict(
            INFERENCE_NUM_THREADS=self.setting.threads,
            NUM_STREAMS=1,
            # Without it, bfloat16 where the processor has it, asked for or not.
            INFERENCE_PRECISION_HINT='bf16' if self.setting.amp else 'f32',
        )
        compiled = self.core.compile_model(self.path, 'CPU', options)
        request, images = compiled.create_infer_request(), self.array()

        def run() -> list[np.ndarray]:
            found = request.infer([images], share_inputs=True, share_outputs=True)
            return list(found.values())

        self.call = run


class FactoredOpenVino(OpenVino):
    """By OpenVINO, peripheral convolutions as box sums."""

    factored = True


def require_ours(module: nn.Module) -> None:
    """Raise an `UnavailableError` if no backbone of a module is of this package."""
    if not any(isinstance(each, LargeKernelBackbone) for each in module.modules()):
        kind = type(module.get_submodule('backbone')).__name__
        raise UnavailableError(f'{kind} is no backbone of this package')


def torch_module(module: nn.Module, factored: bool) -> nn.Module:
    """Put torch's own layers in the place of ours, as an export to ONNX does.

    Args:
        module: What is measured, in evaluation mode; changed in place.
        factored: Whether peripheral convolutions become box sums.

    Raises:
        UnavailableError: If they must, and there is none to become it.
    """
    done = use_torch_convolutions(module, factored)
    if factored and not done.factored:
        raise UnavailableError('it has no convolution that box sums could compute')
    return module


def require_static(module: nn.Module) -> nn.Module:
    """Return a module that may be compiled and exported.

    Raises:
        UnavailableError: If it is a detector with its predictions.
    """
    if isinstance(module, Predictions):
        raise UnavailableError(
            'how much a detector computes depends on what it finds, so only its '
            'backbone and neck are compiled and exported: --part backbone'
        )
    return module


def first_image(outputs: Any) -> list[np.ndarray]:
    """Copy what an inference computed of its first image, in float32.

    Args:
        outputs: Nested tensors, arrays or values of ONNX Runtime, each of shape
            (N, ...).
    """
    found = []
    for leaf in tree_leaves(outputs):
        if isinstance(leaf, Tensor):
            found.append(leaf[:1].float().cpu().numpy().copy())
        else:
            array = leaf if isinstance(leaf, np.ndarray) else leaf.numpy()
            found.append(array[:1].astype(np.float32))
    return found


def versions(engines: Iterable[str]) -> dict[str, str]:
    """Versions of the runtimes that forms need and that are installed, by name."""
    names = [name for each in engines for name in list(ENGINES[each].packages)[:1]]
    return {
        name: str(import_module(name).__version__) for name in names if find_spec(name)
    }


def why_not_installed(engine: str) -> str | None:
    """Say which packages of a form are missing and how they are installed, or None."""
    packages = ENGINES[engine].packages
    missing = [each for each in packages if find_spec(each) is None]
    if not missing:
        return None
    are = 'is' if len(missing) == 1 else 'are'
    names = ' '.join(packages[each] for each in missing)
    return f'{" and ".join(missing)} {are} not installed; `pip install {names}`'


#: The forms by name, the one that others are compared with first.
ENGINES: dict[str, type[TorchForm]] = {
    'eager': TorchForm,
    'deployed': Deployed,
    'prepared': Prepared,
    'prepared_compiled': PreparedCompiled,
    'compiled': Compiled,
    'plain': Plain,
    'plain_compiled': PlainCompiled,
    'onnxruntime': Onnx,
    'onnxruntime_factored': FactoredOnnx,
    'openvino': OpenVino,
    'openvino_factored': FactoredOpenVino,
}
#: Those that are forms of ours: of a competitor there are others alone.
OURS = ('deployed', 'prepared', 'prepared_compiled')
