"""What container engines and registries say, in words for people. The texts are what Docker 20.10 to 28 and Podman say."""

import pytest

from gpustack.worker.runners.daemon_words import pull_trouble, start_trouble

IMAGE = "127.0.0.1:5000/engines/llama:1"


@pytest.mark.parametrize(
    ("said", "says", "again"),
    [
        (
            'Get "http://127.0.0.1:5000/v2/": dial tcp 127.0.0.1:5000: connect: connection refused',
            "127.0.0.1:5000 cannot be reached (connect: connection refused); it is tried again",
            True,
        ),
        ('Get "https://reg/v2/": dial tcp: lookup reg: no such host', "cannot be reached", True),
        ("net/http: TLS handshake timeout", "cannot be reached", True),
        ("received unexpected HTTP status: 503 Service Unavailable", "cannot be reached", True),
        ("manifest for x:1 not found: manifest unknown: manifest unknown", "has no such image or tag", False),
        (
            "pull access denied for x, repository does not exist or may require 'docker login': denied",
            "has no such image, or it wants a login",
            False,
        ),
        ("unauthorized: authentication required", "wants a login; run `docker login 127.0.0.1:5000`", False),
        ('Get "https://r/v2/x": no basic auth credentials', "wants a login", False),
        ("toomanyrequests: You have reached your pull rate limit.", "allows no more pulls for now", True),
        (
            "failed to register layer: write /usr/lib/x.so: no space left on device",
            "no space is left where Docker 28 keeps images at /var/lib/docker; make room there",
            True,
        ),
        ("http: server gave HTTP response to HTTPS client", "speaks plain HTTP", True),
        ("x509: certificate signed by unknown authority", "does not trust the certificate", True),
        ("no matching manifest for linux/arm64/v8 in the manifest list entries", "not made for this", False),
        ("invalid reference format", "that is no name of an image", False),
        ("something\nnobody knows", "cannot be fetched: something nobody knows", True),
    ],
)
def test_an_image_that_cannot_be_had(said: str, says: str, again: bool) -> None:
    told = pull_trouble(said, IMAGE, engine="Docker 28", root="/var/lib/docker")

    assert told.line.startswith(f"the image {IMAGE} cannot be fetched")
    assert says in told.line
    assert "\n" not in told.line
    assert told.again is again


@pytest.mark.parametrize(
    ("said", "says", "again"),
    [
        (
            (
                "OCI runtime create failed: container_linux.go:380: starting container process caused: exec: "
                '"vllm": executable file not found in $PATH: unknown'
            ),
            "it has no program vllm",
            False,
        ),
        (
            (
                "failed to create task for container: failed to create shim task: OCI runtime create failed: runc create "
                'failed: unable to start container process: exec: "/nope": stat /nope: no such file or directory: unknown'
            ),
            "it has no program /nope",
            False,
        ),
        ("No command specified", "it says no program of its own", False),
        ("exec /usr/bin/x: exec format error", "another processor", False),
        (
            'unable to start container process: exec: "/etc/passwd": permission denied: unknown',
            "may not be run by this user",
            False,
        ),
        (
            'could not select device driver "nvidia" with capabilities: [[gpu]]',
            "install the vendor's container toolkit",
            True,
        ),
        ("No such image: x:1", "it was removed from this machine meanwhile", True),
        ("mkdir /var/lib/docker/overlay2/a: no space left on device", "make room there", True),
        ("odd", "cannot be started: odd", True),
    ],
)
def test_a_container_that_cannot_be_started(said: str, says: str, again: bool) -> None:
    told = start_trouble(said, IMAGE, program="vllm", engine="Docker 28")

    assert told.line.startswith(f"the image {IMAGE} cannot be started")
    assert says in told.line
    assert told.again is again
