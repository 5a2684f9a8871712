"""Join the jobs to the process that edits."""

from retouch.jobs.jobs import Jobs, Run
from retouch.jobs.lookup import JobSettings
from retouch.jobs.records import Records
from retouch.lifecycle import ModelHost


def build_jobs(host: ModelHost, run: Run) -> Jobs:
    """Build the jobs over the host's store; they are closed with the host. Sends no request."""
    settings = host.settings
    jobs = Jobs(
        Records(lambda: host.store, prefix=settings.s3_object_prefix),
        JobSettings(
            retention_s=settings.job_retention_seconds,
            link_expires_in_s=settings.presign_expiry,
            max_unfinished=settings.max_queue + 1,
        ),
        run=run,
        require_ready=lambda: host.editor,
    )
    host.close_at_end(jobs.close)
    return jobs
