"""Parts that plug into mmengine's Runner."""
