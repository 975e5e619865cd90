"""Answers to range requests: only exactly the bytes asked for are taken."""

import pytest

from hybrid.core.byte_range import (
    check_range_answer,
    parse_content_range,
    range_header,
    unsatisfied_total,
)
from hybrid.errors import FormatError, HybridError, NetworkError


def test_headers() -> None:
    assert range_header(0, 1) == "bytes=0-0"
    assert range_header(512, 512) == "bytes=512-1023"
    assert parse_content_range(" bytes 1-2/10 ") == (1, 2, 10)
    assert parse_content_range("bytes 1-2/*") == (1, 2, None)
    assert parse_content_range("BYTES 1-2/10") == (1, 2, 10)
    assert unsatisfied_total("bytes */10") == 10
    for bad in (None, "", "bytes */10", "items 1-2/3", "bytes 1-/3", "bytes 1-2", "bytes ²-2/3"):
        assert parse_content_range(bad) is None
    assert unsatisfied_total("bytes */*") is None


def test_good_answers() -> None:
    check_range_answer(206, {"content-range": "bytes 10-19/100"}, 10, 10, 100, "b")
    # RFC 9110 14.4: the total may be unknown; 14.1: units have no case.
    check_range_answer(206, {"content-range": "bytes 10-19/*"}, 10, 10, 100, "b")
    check_range_answer(206, {"content-range": "Bytes 10-19/100"}, 10, 10, 100, "b")
    check_range_answer(200, {"content-length": "100"}, 0, 100, 100, "b")
    check_range_answer(200, {}, 0, 100, 100, "b")
    plain = {"content-range": "bytes 10-19/100", "content-encoding": "identity"}
    check_range_answer(206, plain, 10, 10, 100, "b")


@pytest.mark.parametrize(
    ("status", "headers", "error", "word"),
    [
        (206, {}, NetworkError, "Content-Range"),
        (206, {"content-range": "bytes 0-9/100"}, NetworkError, "0-9/100"),
        (206, {"content-range": "bytes 10-18/100"}, NetworkError, "10-18"),
        (206, {"content-range": "bytes 10-20/100"}, NetworkError, "10-20"),
        (206, {"content-range": "bytes 10-18/*"}, NetworkError, "10-18/*"),
        (206, {"content-range": "bytes 10-19/99"}, FormatError, "99 bytes"),
        (200, {"content-length": "100"}, NetworkError, "ignores Range"),
        (416, {"content-range": "bytes */5"}, FormatError, "5 bytes instead of 100"),
        (416, {}, FormatError, "shorter than the manifest says"),
        (
            206,
            {"content-range": "bytes 10-19/100", "content-encoding": "gzip"},
            NetworkError,
            "encoded",
        ),
    ],
)
def test_bad_answers(
    status: int, headers: dict[str, str], error: type[HybridError], word: str
) -> None:
    with pytest.raises(error) as caught:
        check_range_answer(status, headers, 10, 10, 100, "bytes of b")
    assert word in str(caught.value)
    assert caught.value.message.startswith("bytes of b: ")


def test_a_whole_body_of_another_size() -> None:
    with pytest.raises(FormatError, match="99 bytes, the manifest says 100"):
        check_range_answer(200, {"content-length": "99"}, 0, 100, 100, "b")
