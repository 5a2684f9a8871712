"""The model: the Qwen-Image-Edit family behind the `Engine` port of `retouch.ports`.

`checkpoint` is the door and light to import; it imports the other modules, and torch with them, only
when a checkpoint is loaded.
"""

import os

if not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & os.environ.keys():
    # Read when the GPU is first used. Without it sizes that change leave holes of up to 0.8 GiB.
    os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
# Read when torch is imported. Threads that spin while they wait hold each other up on a CPU that does
# something else as well.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
