"""Join the jobs to the process that edits."""

from retouch.jobs.jobs import Jobs
from retouch.jobs.live import LoadingLine, Run
from retouch.jobs.lookup import JobSettings
from retouch.jobs.records import Records
from retouch.jobs.webhooks import Webhooks
from retouch.lifecycle import ModelHost
from retouch.net.limits import FetchLimits
from retouch.net.post import Poster
from retouch.settings import decode_webhook_secret
from retouch.wiring import build_user_agent


def build_jobs(host: ModelHost, run: Run) -> Jobs:
    """Build the jobs over the host's store; they are closed with the host. Sends no request."""
    settings = host.settings
    records = Records(lambda: host.store, prefix=settings.s3_object_prefix)
    limits = FetchLimits(
        user_agent=build_user_agent(settings.public_url),
        allowed_hosts=frozenset(settings.allowed_webhook_hosts),
    )
    secret = decode_webhook_secret(settings.webhook_secret.get_secret_value())
    jobs = Jobs(
        records,
        JobSettings(
            retention_s=settings.job_retention_seconds,
            link_expires_in_s=settings.presign_expiry,
            max_unfinished=settings.max_queue + 1,
            allowed_source_hosts=frozenset(settings.allowed_source_hosts),
        ),
        # Over MAX_DOWNLOADS a source is refused: an accepted job waits instead.
        run=LoadingLine(run, max_loading=max(1, settings.max_downloads // 2)).run,
        require_ready=lambda: host.editor,
        webhooks=Webhooks(records, Poster(limits), secret),
    )
    host.close_at_end(jobs.close)
    return jobs
