"""``shoal serve`` with keys, and without where it needs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from router.security.settings import Security, is_loopback, read_key
from shard.errors import InvalidInput
from tests.shoal_process import ShoalProcess

KEY = "a-key-of-the-service-that-nobody-guesses"
ALT = "a-key-that-clients-go-over-to-one-by-one"
READER = "a-key-for-readers"


@pytest.mark.cluster
def test_keys_are_told_to_every_router_and_to_nobody_else(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    options = ("--shard-servers", "1", "--routers", "2", "--api-key-file", str(file))
    environment = {"SHOAL_READ_ONLY_API_KEY": READER, "SHOAL_ALT_API_KEY": ALT}
    with ShoalProcess(tmp_path / "data", *options, env=environment) as shoal:
        for _ in range(20):  # Each a connection of its own, to one of the routers.
            assert httpx.get(f"{shoal.url}/readyz").status_code == 200
            assert httpx.get(f"{shoal.url}/collections").status_code == 401
            for key in (KEY, ALT, READER):
                headers = {"api-key": key}
                assert httpx.get(f"{shoal.url}/collections", headers=headers).status_code == 200
            params = {"vectors": {"size": 4, "distance": "Dot"}}
            headers = {"api-key": READER}
            created = httpx.put(f"{shoal.url}/collections/c", json=params, headers=headers)
            assert created.status_code == 403
        for pid, command in shoal.processes().items():
            assert not [key for key in (KEY, ALT, READER) if key in command]
            if pid != shoal.pid:
                assert not {ALT, READER} & set(psutil.Process(pid).environ().values())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.1"])
def test_nobody_is_let_in_from_elsewhere_without_a_key(host: str, tmp_path: Path) -> None:
    for command in ("serve", "router"):
        ended = subprocess.run(
            [sys.executable, "-m", "router.cli", command, "--data", str(tmp_path), "--host", host],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert ended.returncode == 1
        assert "--api-key-file" in ended.stderr and "--allow-anonymous" in ended.stderr
        assert len(ended.stderr.splitlines()) == 1


def test_what_is_safe_may_start() -> None:
    for host in ("127.0.0.1", "localhost", "::1", "127.0.0.2"):
        assert is_loopback(host)
        assert Security().check(host, allow_anonymous=False).local
    assert not Security().check("0.0.0.0", allow_anonymous=True).local
    assert not Security(api_key=KEY).check("127.0.0.1", allow_anonymous=False).local
    assert Security(read_only_api_key=READER).check("0.0.0.0", allow_anonymous=False).has_keys
    with pytest.raises(InvalidInput, match="no-such-host"):
        Security().check("no-such-host.invalid", allow_anonymous=False)
    for key in (None, "short"):
        with pytest.raises(InvalidInput, match="--jwt-rbac"):
            Security(api_key=key, jwt_rbac=True).check("127.0.0.1", allow_anonymous=True)
    both = Security(api_key=KEY, alt_api_key=ALT, jwt_rbac=True)
    assert both.check("0.0.0.0", allow_anonymous=False).has_keys
    with pytest.raises(InvalidInput, match="an --alt-api-key of 32 bytes"):
        short = Security(api_key=KEY, alt_api_key="short", jwt_rbac=True)
        short.check("127.0.0.1", allow_anonymous=False)
    with pytest.raises(InvalidInput, match="--alt-api-key: expected an --api-key too"):
        Security(alt_api_key=ALT).check("127.0.0.1", allow_anonymous=False)


def test_keys_are_read(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(f" {KEY}\n")
    assert read_key(None, file, "--api-key") == read_key(KEY, None, "--api-key") == KEY
    assert read_key(None, None, "--api-key") is None
    with pytest.raises(InvalidInput, match="--api-key-file"):
        read_key(KEY, file, "--api-key")
    with pytest.raises(InvalidInput, match="--api-key-file"):
        read_key(None, tmp_path / "none", "--api-key")
    for bad in (b"", b"\n", b"one\ntwo", b"k\x00y", "kéy".encode(), b"\xff"):
        file.write_bytes(bad)
        with pytest.raises(InvalidInput, match="--api-key") as raised:
            read_key(None, file, "--api-key")
        assert "two" not in str(raised.value)
