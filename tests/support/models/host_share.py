"""Host memory that processes share, for two units of weights."""

from retouch.engine.memory.shared_memory import HostShare, SharedMemory

SIZES = [4 << 20, 3]


def open_memory(share: HostShare) -> SharedMemory:
    memory = share.open("model", SIZES)
    assert memory
    return memory
