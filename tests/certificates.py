"""Certificates of an authority that is made for a test."""

from __future__ import annotations

from pathlib import Path

import trustme

from shard.rpc.tls import AUTHORITY, CERTIFICATE, KEY


def issue(authority: trustme.CA, directory: Path, *names: str) -> Path:
    """Puts a certificate for ``names``, its key and the authority's into ``directory``."""
    directory.mkdir(parents=True)
    issued = authority.issue_cert(*names)
    issued.private_key_pem.write_to_path(directory / KEY)
    for blob in issued.cert_chain_pems:
        blob.write_to_path(directory / CERTIFICATE, append=True)
    authority.cert_pem.write_to_path(directory / AUTHORITY)
    return directory


def renew(authority: trustme.CA, directory: Path, *names: str) -> None:
    """Puts others in the place of what `issue` has put there."""
    for file in issue(authority, directory.with_name(f"{directory.name}-new"), *names).iterdir():
        file.replace(directory / file.name)
    directory.with_name(f"{directory.name}-new").rmdir()
