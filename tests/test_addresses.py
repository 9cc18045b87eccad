import pytest

from igniterd.addresses import Address, host_of, is_loopback


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://me:s3cret@gpu-a:8002/metrics", "http://gpu-a:8002/metrics"),
        ("http://s3cret@gpu-a/metrics", "http://gpu-a/metrics"),
        ("http://me:s3%63ret@[::1]:8002/metrics", "http://[::1]:8002/metrics"),
        ("https://gpu-a/metrics?token=s3cret&of=s3cret", "https://gpu-a/metrics?token=…&of=…"),
        ("https://gpu-a/metrics?s3cret", "https://gpu-a/metrics?…"),
        ("https://gpu-a/metrics#s3cret", "https://gpu-a/metrics"),
    ],
)
def test_an_address_is_shown_without_its_secrets(url: str, shown: str) -> None:
    address = Address.of(url)
    assert address.shown == shown
    assert "s3cret" not in repr(address)
    assert "s3" not in address.said(f"cannot connect to {url}: no route")


def test_the_login_is_apart_from_what_is_asked() -> None:
    address = Address.of("http://me:a%40b@gpu-a:8002/metrics?x=1")
    assert (address.url, address.login) == ("http://gpu-a:8002/metrics?x=1", ("me", "a@b"))
    assert Address.of("http://gpu-a/metrics").login is None
    assert address.said("HTTP status 401 for a@b") == "HTTP status 401 for …"


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("http://me:x@GPU-a:1/y", "gpu-a"),
        ("[::1]:8001", "::1"),
        ("127.0.0.1:8001", "127.0.0.1"),
        ("mqtt://broker", "broker"),
    ],
)
def test_the_host_of_an_address(address: str, host: str) -> None:
    assert host_of(address) == host


def test_what_stays_on_this_machine() -> None:
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.9.9.9", "::1", "a.localhost")))
    assert not any(map(is_loopback, ("10.0.0.1", "broker", "::2", "localhost.example", "")))
