"""Keys, hosts and origins."""

import pytest

from core.errors import ConfigError
from inference.guard import FailureLimit, HostList, Keys, given_key, is_loopback


def test_without_keys_any_key_is_accepted_and_only_loopback_may_be_bound() -> None:
    keys = Keys.from_environment({})
    assert keys.allows(None, admin=True)
    assert keys.allows(b"whatever", admin=False)
    for host in ("127.0.0.1", "localhost", "::1", "127.8.8.8"):
        keys.check_bind(host)
    for host in ("0.0.0.0", "::", "192.168.1.1", "example.org"):
        with pytest.raises(ConfigError, match="INFERENCE_API_KEY"):
            keys.check_bind(host)


def test_keys_open_what_they_are_for() -> None:
    keys = Keys.from_environment({"INFERENCE_API_KEY": "a", "INFERENCE_ADMIN_KEY": "b"})
    keys.check_bind("0.0.0.0")
    assert [keys.allows(k, admin=False) for k in (b"a", b"b", b"c", b"", None)] == [True, True, False, False, False]
    assert [keys.allows(k, admin=True) for k in (b"a", b"b", None)] == [False, True, False]


def test_without_an_admin_key_the_answer_key_guards_admin() -> None:
    keys = Keys.from_environment({"INFERENCE_API_KEY": "a"})
    assert [keys.allows(k, admin=True) for k in (b"a", None)] == [True, False]


def test_a_key_with_any_bytes_is_compared_not_crashed_on() -> None:
    keys = Keys.from_environment({"INFERENCE_API_KEY": "schlüssel"})
    header = "Bearer " + "schlüssel".encode().decode("latin-1")
    assert keys.allows(given_key(header, None), admin=False)
    assert not keys.allows(given_key("Bearer \xff\xfe", None), admin=False)


@pytest.mark.parametrize("header", ["a", "Basic a", "Bearer", "Bearer a, Bearer a", "Bearer aa"])
def test_other_authorization_headers_fit_nothing(header: str) -> None:
    assert not Keys.from_environment({"INFERENCE_API_KEY": "a"}).allows(given_key(header, "a"), admin=False)


def test_x_api_key_is_read_when_there_is_no_authorization() -> None:
    assert given_key(None, " a ") == b"a"
    assert given_key(None, None) is None


@pytest.mark.parametrize("host", ["localhost", "localhost:8765", "127.0.0.1:1", "[::1]:8765", "10.0.0.5", "serve.lan"])
def test_addresses_and_known_names_are_answered(host: str) -> None:
    assert HostList(["serve.lan"]).allows(host)


@pytest.mark.parametrize(
    "host", ["", "evil.example", "localhost.evil.example", "[::1", "localhost:x", "a@localhost", ":80"]
)
def test_other_names_are_not(host: str) -> None:
    assert not HostList(["serve.lan"]).allows(host)


@pytest.mark.parametrize("origin", ["null", "http://evil.example", "http://localhost", "file://", "localhost:8765"])
def test_foreign_origins_are_foreign(origin: str) -> None:
    assert not HostList([]).same_site(origin, "localhost:8765")
    assert HostList([]).same_site("http://localhost:8765", "localhost:8765")


def test_loopback_is_judged_by_address() -> None:
    assert not is_loopback("127.0.0.1.evil.example")
    assert not is_loopback("")


def test_wrong_keys_run_out() -> None:
    limit = FailureLimit(a_minute=3)
    assert [limit.spend() for _ in range(5)] == [True, True, True, False, False]
