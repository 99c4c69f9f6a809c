"""Time PeLK's large convolutions in onnxruntime and OpenVINO, dense and as box sums.

One thread, forms in turns, the least of the turns in milliseconds of CPU time, which
other processes disturb less. Missing runtimes are left out.

    python benchmarks/onnx_layers.py --kernels 51 101
"""

import argparse
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import torch

from pelk_mm.conversion import factored
from pelk_mm.layers import make_sharing_grid
from pelk_mm.ops.reference import expand_kernel

#: Convolved channels, side of the map for images of 512 x 512, and central radius of
#: the layers of PeLK-T and PeLK-T-101, by kernel size.
LAYERS = {
    51: (46, 128, 2),
    49: (93, 64, 2),
    47: (187, 32, 2),
    101: (46, 128, 3),
    69: (93, 64, 3),
    67: (187, 32, 3),
}


def write_forms(kernel, folder):
    """Write a layer in each of its forms; return the files and the input."""
    channels, side, radius = LAYERS[kernel]
    grid = make_sharing_grid(kernel, radius)
    weight, bias = torch.randn(channels, len(grid), len(grid)), torch.randn(channels)
    x = torch.randn(1, channels, side, side)
    multiple = factored.CHANNEL_MULTIPLE
    factored.CHANNEL_MULTIPLE = 1
    forms = {'dense': factored.DenseConv2d(expand_kernel(weight, grid), bias)}
    factored.CHANNEL_MULTIPLE = multiple
    forms['filled up'] = factored.DenseConv2d(expand_kernel(weight, grid), bias)
    forms['box sums'] = factored.FactoredConv2d(weight, grid, bias)
    files = {}
    for name, form in forms.items():
        files[name] = str(folder / f'{kernel} {name}.onnx')
        torch.onnx.export(form.eval(), (x,), files[name], dynamo=False)
    return files, x.numpy()


def load_onnxruntime(file):
    """A function that runs a file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        file, options, providers=['CPUExecutionProvider']
    )
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})


def load_openvino(file):
    """A function that runs a file."""
    import openvino

    settings = dict(INFERENCE_NUM_THREADS=1, INFERENCE_PRECISION_HINT='f32')
    return openvino.compile_model(openvino.Core().read_model(file), 'CPU', settings)


def main():
    """Print a row for each layer and runtime."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--kernels', type=int, nargs='+', default=list(LAYERS))
    parser.add_argument('--turns', type=int, default=3)
    args = parser.parse_args()
    loaders = {'onnxruntime': load_onnxruntime, 'openvino': load_openvino}
    print('| kernel | runtime | dense | filled up | box sums | ratio |')
    print('|---|---|---|---|---|---|')
    with tempfile.TemporaryDirectory() as folder:
        for kernel in args.kernels:
            files, x = write_forms(kernel, Path(folder))
            for runtime, load in loaders.items():
                if find_spec(runtime) is None:
                    continue
                runs = {name: load(file) for name, file in files.items()}
                times = {name: [] for name in runs}
                for turn in range(args.turns + 1):
                    for name, run in runs.items():
                        start = time.process_time()
                        run(x)
                        if turn:  # the first one warms up
                            times[name].append(time.process_time() - start)
                best = {name: 1e3 * min(values) for name, values in times.items()}
                row = ' | '.join(f'{value:.1f}' for value in best.values())
                ratio = best['filled up'] / best['box sums']
                print(f'| {kernel} | {runtime} | {row} | {ratio:.1f} |', flush=True)


if __name__ == '__main__':
    main()
