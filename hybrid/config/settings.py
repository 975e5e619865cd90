"""The rows of the global configuration. Spec: image-config 2; defaults of hybrid where they differ.

Rows with ``applies=False`` belong to overlaybd's daemon. hybrid reads the same file, so it knows
them, checks them, and says so when somebody asks there for something that will not happen.
"""

from __future__ import annotations

from hybrid.config.rows import Kind, Setting

CACHE_TYPES = ("", "file", "ocf", "download")
CREDENTIAL_MODES = ("", "file", "http", "https", "uds")
MAX_REFILL_BYTES = 64 << 20
MAX_SECONDS = 86400.0
GIB = 1 << 30


def _unused(
    key: str, kind: Kind, default: bool | int | str | None, meaning: str, not_done: str = ""
) -> Setting:
    return Setting(key, kind, default, meaning, applies=False, not_done=not_done)


LOG_ROWS = (
    Setting(
        "logConfig.logLevel",
        Kind.INTEGER,
        1,
        "What the log of a mount says: 0 debug, 1 info, 2 warnings, 3 errors.",
        minimum=0,
        maximum=3,
    ),
    Setting(
        "logConfig.logPath",
        Kind.STRING,
        "",
        "Log file that all mounts write to, besides one for each. Empty: the two keys `logLevel` "
        "and `logPath` below count instead of the whole object.",
    ),
    Setting("logLevel", Kind.INTEGER, 1, "Older form of the level.", minimum=0, maximum=3),
    Setting("logPath", Kind.STRING, "", "Older form of the path."),
    _unused("logConfig.logSizeMB", Kind.INTEGER, 10, "Size at which the log is rotated, MB."),
    _unused("logConfig.logRotateNum", Kind.INTEGER, 3, "Number of rotated logs that are kept."),
)

CACHE_ROWS = (
    Setting(
        "cacheConfig.cacheType",
        Kind.STRING,
        "",
        "`file`; `ocf` and `download` are understood and mean the file cache too, with a warning. "
        "Empty: `cacheType`, `registryCacheDir` and `registryCacheSizeGB` below count instead.",
        choices=CACHE_TYPES,
    ),
    Setting(
        "cacheConfig.cacheDir",
        Kind.STRING,
        "",
        "Directory of caches; hybrid's is the directory `hybrid` in it. Empty: "
        "`/var/cache/hybrid` for root, else `$XDG_CACHE_HOME/hybrid` or `~/.cache/hybrid`.",
    ),
    Setting(
        "cacheConfig.cacheSizeGB",
        Kind.NUMBER,
        4,
        "Limit of the cache in units of 2^30 bytes. 0: nothing is kept.",
        minimum=0,
        maximum=1 << 32,
    ),
    Setting(
        "cacheConfig.refillSize",
        Kind.INTEGER,
        262144,
        "Bytes to which a fetch is extended: a power of two from 4096 on (below 65536, 65536 are "
        "taken).",
        minimum=4096,
        maximum=MAX_REFILL_BYTES,
    ),
    Setting(
        "cacheType",
        Kind.STRING,
        "file",
        "Older form of the type.",
        choices=CACHE_TYPES,
    ),
    Setting("registryCacheDir", Kind.STRING, "", "Older form of the directory."),
    Setting(
        "registryCacheSizeGB",
        Kind.NUMBER,
        4,
        "Older form of the limit.",
        minimum=0,
        maximum=1 << 32,
    ),
    _unused("cacheConfig.blockSize", Kind.INTEGER, 65536, "Line size of the OCF cache, bytes."),
    _unused("gzipCacheConfig.enable", Kind.BOOLEAN, False, "Cache for TurboOCI layers."),
    _unused("gzipCacheConfig.cacheDir", Kind.STRING, "", "Its directory."),
    _unused("gzipCacheConfig.cacheSizeGB", Kind.NUMBER, 4, "Its limit, 2^30 bytes."),
    _unused("gzipCacheConfig.refillSize", Kind.INTEGER, 1048576, "Its fetch size, bytes."),
)

REGISTRY_ROWS = (
    Setting(
        "credentialFilePath",
        Kind.STRING,
        "/opt/overlaybd/cred.json",
        "File with user names and passwords of registries, used if `credentialConfig.mode` is "
        "empty. It may be missing.",
    ),
    Setting(
        "credentialConfig.mode",
        Kind.STRING,
        "",
        "Where credentials come from: `file`, or a service (`http`, `https`, `uds`).",
        choices=CREDENTIAL_MODES,
    ),
    Setting(
        "credentialConfig.path",
        Kind.STRING,
        "",
        "The file, URL or socket, by mode. Needed if there is a mode.",
    ),
    Setting(
        "credentialConfig.timeout",
        Kind.NUMBER,
        1,
        "Longest wait for the service, seconds.",
        minimum=0.001,
        maximum=MAX_SECONDS,
    ),
    Setting(
        "credentialConfig.client_cert_path", Kind.STRING, "", "Client certificate, mode `https`."
    ),
    Setting("credentialConfig.client_key_path", Kind.STRING, "", "Its key."),
    Setting(
        "credentialConfig.server_ca_path",
        Kind.STRING,
        "",
        "CA of the service, mode `https`. Empty: the CAs of the system.",
    ),
    Setting("certConfig.certFile", Kind.STRING, "", "Client certificate towards registries."),
    Setting("certConfig.keyFile", Kind.STRING, "", "Its key."),
    Setting("userAgent", Kind.STRING, "", "User-Agent towards registries. Empty: hybrid/VERSION."),
    _unused(
        "registryFsVersion", Kind.STRING, "v2", "Registry client of overlaybd; hybrid has one only."
    ),
    Setting(
        "registry.connectTimeout",
        Kind.NUMBER,
        10,
        "Longest wait for a connection, seconds.",
        minimum=0.001,
        maximum=MAX_SECONDS,
    ),
    Setting(
        "registry.readTimeout",
        Kind.NUMBER,
        20,
        "Longest wait for the next bytes of an answer, seconds.",
        minimum=0.001,
        maximum=MAX_SECONDS,
    ),
    Setting(
        "registry.retryBudget",
        Kind.NUMBER,
        30,
        "Time for one operation with all its retries, seconds.",
        minimum=0,
        maximum=MAX_SECONDS,
    ),
    Setting("registries", Kind.OBJECT, None, "Exceptions by `HOST` or `HOST:PORT`, see below."),
)

REGISTRY_HOST_ROWS = (
    Setting(
        "insecure",
        Kind.BOOLEAN,
        False,
        "Do not verify the certificate of this host; plain HTTP if it has no TLS at all.",
    ),
    Setting("plainHttp", Kind.BOOLEAN, False, "Talk plain HTTP to this host."),
    Setting("caFile", Kind.STRING, "", "PEM file with CAs to trust for this host as well."),
)
"""Keys of ``registries.HOST``: hybrid's own, overlaybd has nothing like them."""

DOWNLOAD_ROWS = (
    _unused(
        "download.enable",
        Kind.BOOLEAN,
        False,
        "Download whole layers in the background.",
        "layers are not downloaded in the background",
    ),
    _unused("download.delay", Kind.INTEGER, 300, "Seconds before it begins."),
    _unused("download.delayExtra", Kind.INTEGER, 30, "Random seconds more."),
    _unused("download.maxMBps", Kind.INTEGER, 100, "Its limit, MB/s."),
    _unused("download.tryCnt", Kind.INTEGER, 5, "Its attempts."),
    _unused("download.blockSize", Kind.INTEGER, 262144, "Bytes per request."),
)
"""Also allowed in the image config."""

DAEMON_ROWS = (
    _unused("ioEngine", Kind.INTEGER, 0, "How overlaybd reads local files."),
    _unused("prefetchConfig.concurrency", Kind.INTEGER, 16, "Workers that replay a trace."),
    _unused(
        "p2pConfig.enable",
        Kind.BOOLEAN,
        False,
        "Read through a P2P proxy.",
        "blobs are read from the registry, not through a P2P proxy",
    ),
    _unused("p2pConfig.address", Kind.STRING, "", "URL of the proxy."),
    _unused(
        "exporterConfig.enable",
        Kind.BOOLEAN,
        False,
        "Serve metrics over HTTP.",
        "no metrics are exported",
    ),
    _unused("exporterConfig.uriPrefix", Kind.STRING, "/metrics", "Path of the metrics."),
    _unused("exporterConfig.port", Kind.INTEGER, 9863, "TCP port of the metrics."),
    _unused("exporterConfig.updateInterval", Kind.INTEGER, 60000000, "Unused in overlaybd too."),
    _unused("enableAudit", Kind.BOOLEAN, True, "Write an audit log."),
    _unused("auditPath", Kind.STRING, "", "File of the audit log."),
    _unused("enableThread", Kind.BOOLEAN, False, "One thread for each device."),
    _unused(
        "serviceConfig.enable",
        Kind.BOOLEAN,
        False,
        "Serve the API for live snapshots.",
        "there is no API for live snapshots",
    ),
    _unused("serviceConfig.address", Kind.STRING, "", "URL of the API."),
)

GLOBAL_ROWS = LOG_ROWS + CACHE_ROWS + REGISTRY_ROWS + DOWNLOAD_ROWS + DAEMON_ROWS
