"""Build every part from the settings. Nothing else joins the two."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

from retouch import __version__, demo
from retouch.editing.adapter_ports import TakesAdapters
from retouch.editing.admission import Admission
from retouch.editing.editor import Editor
from retouch.editing.ports import Engine
from retouch.editing.steps import EditorSettings, Steps
from retouch.engine.adapters.source import URL_FILES
from retouch.engine.checkpoint.find import (
    FULL_MODEL,
    CheckpointSettings,
    find_cache,
    find_runpod_cache,
)
from retouch.engine.checkpoint.load import load
from retouch.engine.checkpoint.local_disk import is_local
from retouch.engine.memory import plan, probe
from retouch.engine.memory.quantization import choose_quantization, full_sizes
from retouch.errors import ModelError
from retouch.images import decode
from retouch.images.sandbox import Decoder, DecoderSettings
from retouch.logs import event
from retouch.lora_files import fetch_adapter
from retouch.net.download import Downloader
from retouch.net.download_limiter import DownloadLimiter
from retouch.net.limits import FetchLimits
from retouch.remote.engine import RemoteEngine, RemoteSettings, connect
from retouch.schema import MAX_LORAS
from retouch.settings import Settings
from retouch.sources.adapters import AdapterLoader
from retouch.sources.loader import SourceLoader, SourceSettings
from retouch.storage.local import LocalStore, load_secret
from retouch.storage.port import Store

_log = logging.getLogger(__name__)
_MAX_ADAPTER_BYTES = 4 << 30
"""A LoRA of the largest rank on every layer, in 16 bits."""
LEAST_GPU_GIB = 7
"""A smaller GPU could stream the full model, but an edit that takes minutes is not worth 54 GiB."""


def build_store(settings: Settings) -> Store:
    """Build the S3 store, or the local store where no S3 settings are set."""
    if settings.uses_s3:
        from retouch.storage.s3 import S3Settings, S3Store  # takes most of a second

        server, public = settings.s3_server, settings.s3_public_server
        return S3Store(
            S3Settings(
                endpoint=server.host,
                access_key=settings.s3_access_key.get_secret_value(),
                secret_key=settings.s3_secret_key.get_secret_value(),
                bucket=settings.s3_bucket,
                region=server.region,
                secure=bool(server.secure),
                public_endpoint=public.host,
                public_secure=bool(public.secure),
                prefix=settings.s3_object_prefix,
                disposition=settings.link_disposition,
                timeout_s=settings.timeout_seconds,
            )
        )
    folder = settings.local_store_dir
    return LocalStore(
        folder,
        secret=load_secret(folder, settings.link_secret.get_secret_value()),
        public_url=settings.public_url,
        # A job gives a new link to its result for as long as it can be read.
        result_ttl_s=max(settings.presign_expiry, settings.job_retention_seconds),
        max_bytes=int(settings.local_store_max_gib * 2**30),
        disposition=settings.link_disposition,
    )


def choose_model(
    memory: plan.FreeMemory, quantization: str = "auto", *, modulation_mapped: bool = False
) -> str:
    """Return the full model's id if `memory` has room for it, else the demo checkpoint's directory.

    `quantization` is how its weights would be stored.
    """
    reason = ""
    if memory.gpu_bytes < LEAST_GPU_GIB * plan.GIB:
        reason = f"the default needs {LEAST_GPU_GIB} GiB of free GPU memory"
    try:
        sizes = partial(full_sizes, modulation_mapped=modulation_mapped)
        choose_quantization(quantization, sizes, plan.EditShape(), memory)
    except ModelError as error:
        reason = error.message
    if not reason:
        return FULL_MODEL
    _report_loading(
        f"using the demo model, because the full model does not fit: {reason}; "
        f"set MODEL_ID={FULL_MODEL} to load it all the same"
    )
    return str(demo.CHECKPOINT_DIR)


def build_engine(settings: Settings, *, server_start_s: float = 3600.0) -> Engine:
    """Load the checkpoint that MODEL_ID names, or the one that fits this machine.

    With ENGINE_URL nothing is loaded: the engine is the server there, which may take `server_start_s`
    to answer.

    Raises:
        ModelError: it cannot be found, read or placed in memory, a model of the hub would run on
            the CPU for want of a newer driver, or the server cannot be used.
    """
    if settings.engine_url:
        server = RemoteSettings(
            url=settings.engine_url,
            key=settings.engine_key.get_secret_value(),
            model=settings.engine_model,
            limits=decode.Limits(max_pixels=settings.max_image_pixels),
            start_s=server_start_s,
        )
        return connect(server, progress=_report_loading)
    if settings.model_id and not Path(settings.model_id).expanduser().is_dir():
        probe.require_driver()
    model_id = settings.model_id or choose_model(
        probe.measure_free(settings.gpu_memory_gib, settings.host_memory_gib),
        settings.quantization,
        modulation_mapped=is_local(find_cache(FULL_MODEL)),
    )
    return load(_describe_checkpoint(settings, model_id), progress=_report_loading)


def _describe_checkpoint(settings: Settings, model_id: str) -> CheckpointSettings:
    return CheckpointSettings(
        model_id=model_id,
        revision=settings.model_revision,
        dtype=settings.dtype,
        cache_dir=str(find_runpod_cache(model_id) or ""),
        gpu_memory_gib=settings.gpu_memory_gib,
        host_memory_gib=settings.host_memory_gib,
        parallel=settings.parallel,
        max_result_px=settings.max_result_pixels,
        prompt_cache_bytes=settings.prompt_cache_mib << 20,
        quantization=settings.quantization,
        attention_backend=settings.attention_backend,
        compile=settings.compile,
        adapters=settings.loras,
        merge_adapters=settings.merge_loras,
        lora_url_bytes=settings.lora_url_bytes,
        profiles=settings.profiles,
        profiles_file=settings.profiles_file,
        fetch=partial(fetch_adapter, limits=_limit_fetches(settings, _MAX_ADAPTER_BYTES)),
        hf_token=settings.hf_token.get_secret_value(),
        transformer_file=settings.transformer_file,
        text_encoder_file=settings.text_encoder_file,
        family=settings.model_family,
    )


def _limit_fetches(settings: Settings, max_bytes: int) -> FetchLimits:
    return FetchLimits(
        max_bytes=max_bytes,
        user_agent=settings.source_user_agent or build_user_agent(settings.public_url),
        allowed_hosts=frozenset(settings.allowed_source_hosts),
    )


def build_user_agent(contact_url: str) -> str:
    """Return the default User-Agent of downloads; some hosts refuse one without a contact.

    >>> build_user_agent("https://edit.example").partition(" ")[2]
    '(+https://edit.example)'
    """
    return f"retouch/{__version__}" + (f" (+{contact_url})" if contact_url else "")


def build_sources(settings: Settings, store: Store, *, exits: AsyncExitStack) -> SourceLoader:
    """Build the source cache over the store, with its downloader and decoder; `exits` closes them."""
    downloader = _build_downloader(settings)
    decoder = Decoder(
        decode.Limits(max_pixels=settings.max_image_pixels),
        DecoderSettings(
            children=settings.decoder_children,
            cpu_seconds=settings.decoder_cpu_seconds,
            memory_bytes=settings.decoder_memory_mib << 20,
        ),
    )
    exits.callback(decoder.close)
    sources = SourceLoader(
        store=store,
        downloader=downloader,
        decoder=decoder,
        limiter=DownloadLimiter(
            max_downloads=settings.max_downloads,
            max_bytes=max(
                settings.max_download_bytes or 33 * settings.max_image_bytes,
                settings.max_image_bytes,
            ),
        ),
        settings=SourceSettings(
            prefix=settings.s3_object_prefix,
            max_bytes=settings.max_image_bytes,
            ttl_s=settings.source_ttl_seconds,
            max_stale_s=settings.source_max_stale_seconds,
            timeout_s=min(settings.source_timeout_seconds, settings.timeout_seconds),
        ),
    )
    exits.callback(sources.close)
    return sources


def _build_downloader(settings: Settings) -> Downloader:
    """Build the downloader of sources, and log each host that is exempt from its guard."""
    limits = _limit_fetches(settings, settings.max_image_bytes)
    for host in sorted(limits.allowed_hosts):
        event(_log, "source.host_exempted", level=logging.WARNING, host=host)
    return Downloader(replace(limits, max_per_host=settings.downloads_per_host))


def build_editor(
    settings: Settings,
    engine: Engine,
    store: Store,
    *,
    exits: AsyncExitStack,
    expected_edit_s: float = 0.0,
    on_model_lost: Callable[[], None] = lambda: None,
) -> Editor:
    """Build the editor over a loaded engine and an open store.

    `exits` lets edits in progress end. `expected_edit_s` is how long an edit is likely to take.
    `on_model_lost` is called when the model hangs.
    """
    admission = Admission(
        max_queue=settings.max_queue, expected_edit_s=expected_edit_s, on_model_lost=on_model_lost
    )
    steps = Steps(
        sources=build_sources(settings, store, exits=exits),
        engine=engine,
        storage=store,
        adapters=_build_adapter_loader(settings, engine, exits),
        settings=EditorSettings(
            prefix=settings.s3_object_prefix,
            link_expires_in_s=settings.presign_expiry,
            store_timeout_s=settings.timeout_seconds,
            job_timeout_s=settings.job_timeout_seconds,
            grace_s=settings.edit_grace_seconds,
            reuse=settings.reuse_results,
            max_source_bytes=settings.max_request_image_bytes,
        ),
        on_model_lost=admission.lose_model,
    )
    editor = Editor(steps, admission)
    if isinstance(engine, RemoteEngine):
        exits.callback(engine.close)
        exits.callback(asyncio.ensure_future(engine.watch()).cancel)
    exits.push_async_callback(editor.close)
    return editor


def _build_adapter_loader(
    settings: Settings, engine: Engine, exits: AsyncExitStack
) -> AdapterLoader | None:
    if not isinstance(engine, TakesAdapters) or not engine.keeper:
        return None
    limits = _limit_fetches(settings, settings.lora_url_bytes // URL_FILES)
    loader = AdapterLoader(
        downloader=Downloader(limits),
        limiter=DownloadLimiter(max_downloads=MAX_LORAS, max_bytes=limits.max_bytes),
        keeper=engine.keeper,
    )
    exits.callback(loader.close)
    return loader


def _report_loading(message: str) -> None:
    event(_log, "engine.loading", progress=message)
