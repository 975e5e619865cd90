"""Sizes on the command line: the right number of bytes, or a refusal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid.cli.sizes import parse_size
from hybrid.errors import UsageError


@pytest.mark.parametrize(
    ("text", "size"),
    [(None, 0), ("4096", 4096), ("64G", 64 << 30), ("64g", 64 << 30), ("512MiB", 512 << 20),
     ("8kb", 8192), ("1024T", 1 << 50), (" 1M ", 1 << 20)],
)  # fmt: skip
def test_sizes(text: str | None, size: int) -> None:
    assert parse_size(text) == size


@given(st.text(alphabet="0123456789KMGTiB. -+exX\u0663", max_size=8))
def test_a_size_or_a_refusal(text: str) -> None:
    try:
        size = parse_size(text)
    except UsageError:
        return
    assert 0 < size <= 1 << 50
    assert size % 4096 == 0
