"""Studies of the models: size, speed, receptive fields, kernels, logs."""
