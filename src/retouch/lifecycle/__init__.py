"""The life of the process that edits: `model_host` loads the model, runs edits and stops; `warm_up` is its first edit.

Both entry points use it, so start-up and the model's states are the same over HTTP and on Runpod.
"""

from retouch.lifecycle.model_host import EXIT_STATUS, ModelHost, State, prepare_process

__all__ = ["EXIT_STATUS", "ModelHost", "State", "prepare_process"]
