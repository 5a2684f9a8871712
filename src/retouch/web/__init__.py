"""The ASGI pieces of the HTTP door, one module each; none of them knows the model."""
