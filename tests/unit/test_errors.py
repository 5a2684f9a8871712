import logging
import re
from typing import get_args

import pytest

from retouch import errors
from retouch.errors import EditError, error_classes
from retouch.schema import ErrorBody, error_body
from retouch.schema.response import ErrorType

STATUSES = {
    "BadInput": {400, 404, 405, 409, 413, 415},
    "DownloadFailed": {502},
    "CacheReadFailed": {502},
    "ModelError": {500},
    "StorageError": {503},
    "Unauthorized": {401, 403},
    "Overloaded": {429, 503},
    "NotReady": {503},
    "DeadlineExceeded": {504},
    "Cancelled": {499},
    "InternalError": {500},
}


def test_every_class_is_listed_once_but_groups_and_those_with_their_parents_code() -> None:
    of_module = {
        cls
        for cls in vars(errors).values()
        if isinstance(cls, type)
        and issubclass(cls, EditError)
        and cls.__module__.startswith("retouch.errors")
    }
    groups = {
        errors.EditError,
        errors.BadInput,
        errors.DownloadFailed,
        errors.SourceUnresolved,
        errors.SourceCertificateInvalid,
    }
    listed = error_classes()
    assert len(listed) == len(set(listed))
    assert set(listed) == of_module - groups


def test_codes_are_unique_snake_case() -> None:
    codes = [cls.code for cls in error_classes()]
    assert len(codes) == len(set(codes))
    assert all(re.fullmatch("[a-z]+(_[a-z]+)*", code) for code in codes)


@pytest.mark.parametrize("cls", error_classes(), ids=lambda cls: cls.code)
def test_type_and_status_are_those_of_the_contract(cls: type[EditError]) -> None:
    assert cls.status in STATUSES[cls.type]
    assert cls.__doc__


def test_every_type_of_the_contract_has_a_class_and_each_of_its_statuses_an_error() -> None:
    found: dict[str, set[int]] = {}
    for cls in error_classes():
        found.setdefault(cls.type, set()).add(cls.status)
    assert found == STATUSES
    assert set(get_args(ErrorType)) == set(STATUSES)


def test_a_bad_file_link_is_forbidden_and_a_missing_key_is_unauthorized() -> None:
    assert errors.Unauthorized.status == 401
    assert {errors.LinkInvalid.status, errors.LinkExpired.status} == {403}


def test_the_tree_in_the_docstring_names_every_class() -> None:
    drawn = set(
        re.findall(r"[A-Z]\w+", str(errors.__doc__).split("* EditError")[1].split("\n\n")[0])
    )
    classes = {cls.__name__ for cls in error_classes()}
    assert drawn == classes | {
        "BadInput",
        "DownloadFailed",
        "SourceUnresolved",
        "SourceCertificateInvalid",
    }


def test_only_faults_that_can_pass_are_retryable() -> None:
    assert {cls.code for cls in error_classes() if cls.retryable} == {
        "cache_unreadable",
        "deadline_exceeded",
        "decoder_busy",
        "model_lost",
        "not_ready",
        "downloads_full",
        "engine_unavailable",
        "queue_full",
        "source_connect_failed",
        "source_failing",
        "source_malformed",
        "source_timed_out",
        "storage_failed",
        "store_unavailable",
        "worker_lost",
    }


def test_only_our_own_faults_are_logged_as_errors() -> None:
    assert {cls.code for cls in error_classes() if cls.log_level >= logging.ERROR} == {
        "cache_unreadable",
        "engine_denied",
        "internal_error",
        "model_failed",
        "non_finite_result",
        "out_of_memory",
        "storage_failed",
        "store_denied",
        "store_unavailable",
    }


@pytest.mark.parametrize("cls", error_classes(), ids=lambda cls: cls.code)
def test_every_error_makes_a_valid_body_without_its_context(cls: type[EditError]) -> None:
    error = cls("it went wrong", details={"more": 1}, host="h")
    body = error_body(error, request_id="r-1").model_dump(mode="json")
    assert ErrorBody.model_validate(body).model_dump(mode="json") == body
    assert body == {
        "status": "error",
        "error": {
            "type": cls.type,
            "message": error.message,
            "details": {
                **error.details,
                "code": cls.code,
                "retryable": cls.retryable,
                "request_id": "r-1",
            },
        },
    }
    assert "host" not in body["error"]["details"]


def test_details_cannot_stand_in_for_the_code() -> None:
    error = errors.BrokenImage("no", details={"code": "mine", "request_id": "mine", "more": [1]})
    details = error_body(error, request_id="r").error.details
    assert (details.code, details.request_id) == ("broken_image", "r")
    assert details.model_extra == {"more": [1]}


def test_a_refused_address_an_unknown_name_and_a_failed_lookup_read_the_same() -> None:
    bodies = [
        error_body(error, request_id="r")
        for error in (
            errors.SourceUnreachable(host="a", reason="refused"),
            errors.SourceUnreachable(host="b", reason="unknown"),
            errors.SourceUnresolved(host="c"),
        )
    ]
    assert bodies == [bodies[0]] * 3


def test_invalid_request_names_every_field_in_text_and_details() -> None:
    error = errors.InvalidRequest.for_fields({"seed": "too big", "width": "odd"}, host="h")
    assert error.message == "seed: too big; width: odd"
    assert error.details == {"fields": {"seed": "too big", "width": "odd"}}
    assert error.context == {"host": "h"}


@pytest.mark.parametrize(
    ("details", "retry_after_s"), [({"retry_after": 7}, 7), ({"retry_after": "x"}, 10), ({}, 10)]
)
def test_overloaded_says_when_to_try_again(details: dict[str, object], retry_after_s: int) -> None:
    assert errors.Overloaded("full", details=details).retry_after_s == retry_after_s


def test_an_error_without_a_message_takes_that_of_its_class() -> None:
    error = errors.ModelLost()
    assert error.message == str(error) == errors.ModelLost.default_message


def test_details_given_are_copied() -> None:
    details = {"more": 1}
    error = errors.BrokenImage("no", details=details)
    details["more"] = 2
    assert error.details == {"more": 1}
