from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from po_distill.providers.http_json import UnauthorizedError, refusal, retry_after_s


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("7", 7.0), ("0.5", 0.5), ("-3", 0.0), ("soon", None), ("inf", None), ("nan", None), ("Mon, 99 Foo", None)],
)
def test_a_wait_is_read_only_where_it_can_be_waited_for(value, seconds):
    assert retry_after_s({"Retry-After": value}) == seconds


def test_a_wait_until_a_date_is_counted_from_now():
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert 25 < (retry_after_s({"Retry-After": later}) or 0) <= 30
    assert retry_after_s({}) is None


@pytest.mark.parametrize(
    ("status", "message", "fault"),
    [
        (429, "slow down", "rate_limited"),
        (408, "late", "unavailable"),
        (503, "down", "unavailable"),
        (413, "large", "bad_answer"),
        (422, "odd", "bad_answer"),
        (400, "The input token count (9) exceeds the maximum number of tokens allowed (8).", "bad_answer"),
        (400, "odd", "refused"),
        (403, "no", "refused"),
        (404, "none", "refused"),
        (302, "there", "refused"),
    ],
)
def test_a_status_says_what_may_help(status, message, fault):
    error = refusal("The server", status, b'{"error": {"message": "%s"}}' % message.encode(), {})
    assert error.fault == fault and message in error.problem and error.fix and not error.doubtful


def test_refused_credentials_are_an_error_of_their_own():
    error = refusal("The server", 401, b"<html>", {})
    assert isinstance(error, UnauthorizedError) and error.fault == "refused"
