"""An image in an OCI layout as a source."""

from __future__ import annotations

from hybrid.build.contract import ImageSource
from hybrid.core.byte_stream import BlobContent, ByteStream, SourceStream, VerifiedStream
from hybrid.core.layout import OciLayout
from hybrid.core.platforms import Platform
from hybrid.core.reference import LayoutReference, ManifestBlob
from hybrid.errors import UnsupportedError

DAMAGED_HINT = "copy the image into the layout again"


class LayoutSource(ImageSource):
    """Raises NotFoundError if the layout is not there. Its index is read once."""

    def __init__(self, ref: LayoutReference) -> None:
        self.name = str(ref)
        self._tag = ref.tag
        self._layout = OciLayout(ref.directory)

    async def get_manifest(
        self, digest: str = "", *, platform: Platform | None = None
    ) -> ManifestBlob:
        reference = digest or self._tag
        if platform is not None or (reference or "").startswith("sha256:"):
            return self._layout.resolve(reference, platform or Platform("", ""))
        entries = {entry.digest for entry in self._layout.images(reference)}
        if len(entries) > 1:
            raise UnsupportedError(
                f"{self.name} stands for {len(entries)} manifests, which no index holds together",
                hint="choose one with --platform, or name one by its digest",
            )
        return self._layout.resolve(entries.pop(), Platform("", ""))

    def blob(self, digest: str, size: int | None) -> BlobContent:
        async def open_stream() -> ByteStream:
            source = self._layout.blob_source(digest, size)
            stream = SourceStream(source)
            return VerifiedStream(stream, digest, source.size, hint=DAMAGED_HINT)

        return BlobContent(open_stream, digest, size)
