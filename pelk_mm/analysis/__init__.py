"""Studies of the models: complexity and the figures of the papers."""
