"""What `fetch` can be brought to reach: nothing but public addresses, whatever a URL, a redirect
or a name server says. The server that mustn't be reached is a real one on the loopback."""

import gzip
import zlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from mesh.errors import ToolUnavailable
from services.tools.builtins.fetch import Fetch
from services.tools.egress import EgressPolicy, EgressRefused, guarded_client, is_public
from services.tools.results import ToolResult
from services.tools.settings import ToolsSettings
from tests.support.dns import name_server
from tests.support.http_site import Page, Site, site

SECONDS = 5.0
PUBLIC = "93.184.215.14"

HOSTS = [
    *("127.0.0.1", "localhost", "LOCALHOST", "127.0.0.1.", "127.1", "127.0.1", "0", "0.0.0.0"),
    *("2130706433", "0x7f000001", "0x7f.0.0.1", "0177.0.0.1", "017700000001", "0x7f.1"),
    *("127.255.255.254", "[::1]", "[::]", "[0:0:0:0:0:0:0:1]", "[::127.0.0.1]"),
    *("[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::ffff:0:127.0.0.1]", "[64:ff9b::7f00:1]"),
    *("[64:ff9b:1::7f00:1]", "[2002:7f00:1::]", "[2001:0:7f00:1::]", "[fe80::1]", "[fec0::1]"),
    *("[fe80::1%25lo]", "[fc00::1]", "[fd00:ec2::254]", "[ff02::1]", "[100::1]", "[2001:db8::1]"),
    *("169.254.169.254", "169.254.170.2", "100.100.100.200", "168.63.129.16", "192.0.0.192"),
    *("10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.0.1", "100.64.0.1", "198.18.0.1"),
    *("192.0.2.1", "198.51.100.1", "203.0.113.1", "192.88.99.1", "224.0.0.1", "239.255.255.250"),
    *("240.0.0.1", "255.255.255.255", "0xa9fea9fe", "2852039166", "0251.0376.0251.0376"),
    # Fullwidth digits and dots, digits in circles, which names are made of after IDNA.
    *("\uff11\uff12\uff17.\uff10.\uff10.\uff11", "127\u30020\u30020\u30021", "%31%32%37.0.0.1"),
    *("\u2460\u2461\u2466.\u24ea.\u24ea.\u2460", "\u24dbocalhost"),
]
URLS = [
    *("http://example.com@127.0.0.1:{port}/", "http://127.0.0.1:{port}@example.com/"),
    *("http://user:secret@127.0.0.1:{port}/", "http://:@127.0.0.1:{port}/"),
    *("http://127.0.0.1:{port}#@example.com/", "http://127.0.0.1:{port}?@example.com/"),
    *("http://example.com\\@127.0.0.1:{port}/", "http://127.0.0.1:{port}\\.example.com/"),
    *("http://127.0.0.1:{port}/\r\nx-injected: 1", "http://127.0.0.1\r\n:{port}/"),
    *("http://127.0.0.1:{port}\t/", "http://127.0.0.1:{port}/%0d%0ax-injected:%201"),
    *(" http://127.0.0.1:{port}/", "http:/127.0.0.1:{port}/", "http:127.0.0.1:{port}/"),
    *("//127.0.0.1:{port}/", "127.0.0.1:{port}", "http://", "http:///", "", "http://[::1"),
    *("file:///etc/passwd", "ftp://127.0.0.1:{port}/", "gopher://127.0.0.1:{port}/_GET"),
    *("dict://127.0.0.1:{port}/d:a", "data:text/plain,hello", "javascript:alert(1)"),
    *("unix:///var/run/docker.sock", "http+unix://%2Fvar%2Frun%2Fdocker.sock/", "jar:http://a!/"),
    *("http://127.0.0.1:{port}:80/", "http://127.0.0.1:-1/", "http://127.0.0.1:99999999/"),
    *("ws://127.0.0.1:{port}/", "HTTP://127.0.0.1:{port}/", "hTtP://LocalHost:{port}/"),
]
REDIRECTED = [
    *("http://127.0.0.1:{port}/secret", "http://localhost:{port}/secret", "//127.1:{port}/secret"),
    *("http://2130706433:{port}/secret", "http://[::ffff:127.0.0.1]:{port}/secret"),
    *("http://169.254.169.254/latest/meta-data/", "file:///etc/passwd", "http://a@127.0.0.1/"),
    *("http://10.0.0.1/", "gopher://127.0.0.1:{port}/", "http://[fe80::1%25lo]/"),
]


@pytest.fixture
async def inside() -> AsyncIterator[Site]:
    """A server that only this machine reaches."""
    async with site({"/": Page(b"the secret"), "/secret": Page(b"the secret")}) as running:
        yield running


async def fetched(
    url: str, policy: EgressPolicy | None = None, **settings: Any
) -> ToolResult | None:
    """What the tool answers; None where nothing could be reached."""
    fetch = Fetch(policy or EgressPolicy(), ToolsSettings(**settings))
    try:
        return await fetch.fetch(url, SECONDS)
    except ToolUnavailable:
        return None
    finally:
        await fetch.close()


def letting(running: Site, **more: Any) -> EgressPolicy:
    """A policy that lets the server's own name and port be reached, and nothing else of ours."""
    return EgressPolicy(private_hosts=frozenset({f"127.0.0.1:{running.port}"}), **more)


async def test_the_control_reaches_the_server(inside: Site) -> None:
    """Without this one, all that mustn't be reached could just be away."""
    result = await fetched(inside.url(), letting(inside))
    assert result is not None
    assert "the secret" in result.content
    assert inside.hits == 1


@pytest.mark.parametrize("host", HOSTS)
async def test_no_form_of_a_private_address_is_reached(inside: Site, host: str) -> None:
    result = await fetched(f"http://{host}:{inside.port}/secret", fetch_seconds=0.5)
    assert result is None or result.is_error
    assert inside.hits == 0


@pytest.mark.parametrize("url", URLS)
async def test_no_trick_with_a_url_reaches_it(inside: Site, url: str) -> None:
    result = await fetched(url.replace("{port}", str(inside.port)), fetch_seconds=0.5)
    assert result is None or result.is_error
    assert inside.hits == 0


@pytest.mark.parametrize("target", REDIRECTED)
async def test_no_redirect_leads_to_it(inside: Site, target: str) -> None:
    location = target.replace("{port}", str(inside.port))
    async with site({"/": Page(b"", 302, headers={"location": location})}) as outside:
        result = await fetched(outside.url(), letting(outside))
    assert outside.hits == 1, "the redirect was seen"
    assert result is None or result.is_error
    assert inside.hits == 0


async def test_a_redirect_that_may_be_followed_is(inside: Site) -> None:
    async with site({"/": Page(b"", 302, headers={"location": inside.url()})}) as outside:
        hosts = frozenset({f"127.0.0.1:{inside.port}", f"127.0.0.1:{outside.port}"})
        result = await fetched(outside.url(), EgressPolicy(private_hosts=hosts))
    assert result is not None
    assert "the secret" in result.content


async def test_redirects_are_bounded() -> None:
    async with site({"/": Page(b"", 302, headers={"location": "/"})}) as outside:
        result = await fetched(outside.url(), letting(outside), fetch_redirects_max=3)
    assert result is not None
    assert "redirects more than 3 times" in result.content
    assert outside.hits == 4


async def test_a_name_that_is_rebound_is_asked_for_once_and_never_dialled_elsewhere(
    inside: Site,
) -> None:
    """The name server says a public address first, and this machine's to everybody after."""
    async with name_server([PUBLIC], ["127.0.0.1"]) as names:
        url = inside.url("/secret", "rebound.example")
        result = await fetched(url, EgressPolicy(resolver=names.resolve), fetch_seconds=0.5)
        assert names.questions == ["rebound.example"]
        assert result is None, "the public address is nobody's here"
        assert inside.hits == 0
        # Whoever asks again, as one does who looks first and connects by name after, gets there.
        assert await names.resolve("rebound.example", 80) == ["127.0.0.1"]


async def test_a_name_with_one_private_address_among_others_is_refused(inside: Site) -> None:
    async with name_server([PUBLIC, "127.0.0.1"]) as names:
        policy = EgressPolicy(resolver=names.resolve)
        result = await fetched(inside.url("/secret", "mixed.example"), policy)
    assert result is not None
    assert "isn't a public address" in result.content
    assert inside.hits == 0


async def test_each_connection_looks_anew(inside: Site) -> None:
    """A name that was public for the first request isn't trusted for the second one."""
    async with name_server([PUBLIC], ["127.0.0.1"]) as names:
        policy = EgressPolicy(resolver=names.resolve)
        fetch = Fetch(policy, ToolsSettings(fetch_seconds=0.5))
        url = inside.url("/secret", "rebound.example")
        with pytest.raises(ToolUnavailable):
            await fetch.fetch(url, SECONDS)
        assert (await fetch.fetch(url, SECONDS)).is_error
        await fetch.close()
    assert inside.hits == 0


async def test_the_request_names_the_host_and_carries_nothing_of_ours(inside: Site) -> None:
    async with name_server(["127.0.0.1"]) as names:
        policy = EgressPolicy(
            private_hosts=frozenset({f"docs.example:{inside.port}"}), resolver=names.resolve
        )
        inside.pages["/"] = Page(b"once", headers={"set-cookie": "a=b"})
        fetch = Fetch(policy, ToolsSettings())
        for _ in range(2):
            await fetch.fetch(inside.url("/", "docs.example"), SECONDS)
        await fetch.close()
    assert len(inside.requests) == 2
    for head in inside.requests:
        lowered = head.lower()
        assert f"host: docs.example:{inside.port}" in lowered
        assert "cookie" not in lowered
        assert "authorization" not in lowered


async def test_proxies_of_the_environment_are_not_used(
    inside: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, inside.url())
    result = await fetched("http://10.0.0.1/", fetch_seconds=1)
    assert result is not None
    assert result.is_error
    async with guarded_client(EgressPolicy()) as client:
        with pytest.raises(EgressRefused):
            await client.get("http://10.0.0.1/")
    assert inside.hits == 0


@pytest.mark.parametrize(
    ("allowed", "blocked", "host", "reached"),
    [
        ({"docs.example"}, set(), "docs.example", True),
        ({"docs.example"}, set(), "DOCS.example.", True),
        ({"docs.example"}, set(), "evil.example", False),
        ({"docs.example"}, set(), "docs.example.evil.example", False),
        ({"*.docs.example"}, set(), "a.docs.example", True),
        ({"*.docs.example"}, set(), "evildocs.example", False),
        (set(), {"evil.example"}, "evil.example", False),
        (set(), {"evil.example"}, "EVIL.example.", False),
        (set(), {"*.evil.example"}, "a.b.evil.example", False),
        ({"a.example"}, {"a.example"}, "a.example", False),
    ],
)
async def test_hosts_are_let_and_blocked_by_settings(
    allowed: set[str], blocked: set[str], host: str, reached: bool
) -> None:
    policy = EgressPolicy(frozenset(allowed), frozenset(blocked))
    if reached:
        assert policy.check_url(f"https://{host}/").host
    else:
        with pytest.raises(EgressRefused):
            policy.check_url(f"https://{host}/")


@pytest.mark.parametrize(
    "page",
    [
        Page(b"x" * 65_536, is_endless=True),
        Page(gzip.compress(b"\0" * 50_000_000), headers={"content-encoding": "gzip"}),
        Page(zlib.compress(b"\0" * 50_000_000), headers={"content-encoding": "deflate"}),
        Page(b"x" * 2_000_000),
        Page(b"ab", headers={"content-encoding": "br"}),
        Page(b"not gzip", headers={"content-encoding": "gzip"}),
        Page(b"GIF89a", content_type="image/gif"),
        Page(b"", content_type="application/octet-stream"),
        Page(b"x", content_type=""),
    ],
    ids=["endless", "gzip", "deflate", "large", "brotli", "broken", "image", "bytes", "untyped"],
)
async def test_what_is_too_much_or_no_text_is_refused(page: Page) -> None:
    async with site({"/": page}) as outside:
        result = await fetched(outside.url(), letting(outside), fetch_bytes_max=1_000_000)
    assert result is not None
    assert result.is_error


async def test_a_page_that_takes_too_long_is_given_up() -> None:
    async with site({"/": Page(delay_seconds=1)}) as outside:
        assert await fetched(outside.url(), letting(outside), fetch_seconds=0.2) is None


@pytest.mark.parametrize("address", ["8.8.8.8", PUBLIC, "2606:4700:4700::1111", "1.1.1.1"])
def test_public_addresses_are_public(address: str) -> None:
    assert is_public(address)
