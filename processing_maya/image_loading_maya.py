"""Load an image safely from any source: memory, file, data URI or the web."""

import base64
import binascii
import http.client
import io
import ipaddress
import os
import re
import socket
import ssl
import stat
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import quote, unquote, unquote_to_bytes, urljoin, urlsplit

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_BYTES = 32 * 2**20
MAX_PIXELS = 64_000_000
# Longest side in pixels of an image that is padded to a square.
MAX_PADDED_SIDE = 16384
TIMEOUT = 20.0
MAX_REDIRECTS = 5

# Raster formats only, because PIL's EPS reader, for example, runs an external program.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")

# First characters of image files in base64: PNG, JPEG, GIF, WEBP, BMP, TIFF.
BASE64_BEGINNINGS = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR", "Qk0", "SUkq", "TU0AKg")
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]+={0,2}\s*")

ImageSource: TypeAlias = Image.Image | bytes | bytearray | memoryview | str | os.PathLike


def load_image(
    source: ImageSource,
    *,
    root: str | os.PathLike | None = None,
    follow_links: bool = False,
    max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
    timeout: float = TIMEOUT,
    allow_files: bool = True,
    allow_urls: bool = True,
    allow_private: bool = False,
) -> Image.Image:
    """Load and decode the image that `source` names, in its own PIL mode.

    Args:
        source: a PIL image, the bytes of a file, a path, an `http(s)://` URL, a `data:` URI, or the
            bytes of a file as base64 text. Of an animation, the first frame is used.
        root: if given, files are looked up in this folder and must be inside it, links resolved.
        follow_links: links in `root` may lead out of it; the path itself must not.
        max_bytes: largest file or download, in bytes.
        max_pixels: largest width times height, checked in the header before decoding.
        timeout: seconds for a whole download, including redirects and name resolution.
        allow_files: allow files of this machine.
        allow_urls: allow downloads from the web.
        allow_private: also allow loopback, private and link-local addresses. Otherwise every host,
            also after redirects, must resolve only to public addresses, and the connection uses exactly
            the address that was checked. Proxy settings are ignored.

    Raises:
        ValueError: if the source is refused, not an image, broken or too large.
        FileNotFoundError: if the file does not exist.
        OSError: if the network fails. All errors are one line that names the source.
    """
    if isinstance(source, Image.Image):
        return _decode(source, _describe(source), max_pixels)
    name = _describe(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
        _check_size(len(data), max_bytes, name)
    elif isinstance(source, os.PathLike):
        data = _read_file(Path(source), root, max_bytes, name, allow_files, follow_links)
    elif isinstance(source, str):
        scheme = source.split(":", 1)[0].lower() if ":" in source else ""
        if scheme == "data":
            data = _read_data_uri(source, max_bytes, name)
        elif scheme in ("http", "https"):
            if not allow_urls:
                raise ValueError(f"Cannot read {name}: addresses are switched off (allow_urls).")
            data = _download(
                source, max_bytes, time.monotonic() + timeout, timeout, allow_private, name
            )
        elif "://" in source:
            raise ValueError(
                f"Cannot read {name}: scheme {scheme!r} is not allowed, only http, https and data."
            )
        elif is_base64_picture(source):
            data = _read_base64(source, max_bytes, name)
        else:
            data = _read_file(Path(source), root, max_bytes, name, allow_files, follow_links)
    else:
        raise ValueError(
            f"Cannot read an image from {type(source).__name__}: expected a PIL image, bytes, a path or a URL."
        )
    return _decode(data, name, max_pixels)


def decode_picture(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode the file content `data`, at most `MAX_BYTES` bytes, to an image in its own PIL mode.

    Args:
        name: name of the image in errors.

    Raises:
        ValueError: as `load_image`.
    """
    _check_size(len(data), MAX_BYTES, _describe(name))
    return _decode(bytes(data), _describe(name), max_pixels)


def read_picture_file(
    path: str | os.PathLike,
    *,
    root: str | os.PathLike | None = None,
    follow_links: bool = False,
    max_bytes: int | None = None,
) -> bytes:
    """Return the bytes of a file without decoding it, with the checks of `load_image`.

    Raises as `load_image` before decoding.
    """
    limit = MAX_BYTES if max_bytes is None else max_bytes
    return _read_file(Path(path), root, limit, _describe(path), True, follow_links)


def _describe(source: Any) -> str:
    if isinstance(source, Image.Image):
        return (
            getattr(source, "filename", "")
            or f"a PIL image ({source.mode}, {source.width}x{source.height})"
        )
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"image bytes ({len(source)} bytes)"
    if isinstance(source, str) and source[:5].lower() == "data:":
        return f"a data: URI ({len(source)} characters)"
    if isinstance(source, str) and is_base64_picture(source):
        return f"base64 text ({len(source)} characters)"
    text = repr(str(source))
    return text if len(text) <= 200 else f"{text[:200]}...'"


def _printable(text: Any) -> str:
    """Return text of others, such as a server's answer, as one short line without control characters."""
    line = "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in str(text)
    )
    return line if len(line) <= 200 else f"{line[:200]}..."


def _with_name(error: Exception, beginning: str, end: str = "") -> str:
    """Return an error's message, with `beginning` and `end` unless the message names the source."""
    text = str(error)
    return text if text.startswith("Cannot") else f"{beginning}: {text}{end}"


def _check_size(size: int, max_bytes: int, name: str) -> None:
    if size == 0:
        raise ValueError(f"Cannot read {name}: it is empty.")
    if size > max_bytes:
        raise ValueError(f"Cannot read {name}: expected at most {max_bytes} bytes, found {size}.")


# Decoding


def _decode(source: bytes | Image.Image, name: str, max_pixels: int) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # This function enforces max_pixels itself, as an error and before decoding. Other warnings of
            # PIL, about odd tags, would be printed beside the one-line error.
            warnings.simplefilter("ignore")
            if isinstance(source, bytes):
                Image.init()
                image = Image.open(
                    io.BytesIO(source), formats=[f for f in FORMATS if f in Image.OPEN]
                )
            else:
                image = source
            if not image.width or not image.height:
                raise ValueError(
                    f"Cannot read {name}: expected at least one pixel, found {image.width}x{image.height}."
                )
            if image.width * image.height > max_pixels:
                raise ValueError(
                    f"Cannot read {name}: expected at most {max_pixels} pixels, found {image.width}x{image.height}."
                )
            image.load()
    except Image.DecompressionBombError as error:
        raise ValueError(f"Cannot read {name}: {error}") from None
    except UnidentifiedImageError:
        raise ValueError(
            f"Cannot read {name}: not a picture in a known format ({', '.join(FORMATS)})."
        ) from None
    except ValueError as error:
        raise ValueError(_with_name(error, f"Cannot read {name}")) from None
    except Exception as error:
        # For broken files PIL's readers raise many types: OSError, SyntaxError, struct.error, ...
        raise ValueError(f"Cannot read {name}: broken or cut off ({_printable(error)}).") from None
    return image


def upright(image: Image.Image) -> Image.Image:
    """Return `image` rotated by its EXIF orientation; unchanged if its EXIF data cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ImageOps.exif_transpose(image)
    except Exception:
        # PIL's EXIF reader raises many exception types; the pixels are still valid.
        return image


def check_padded_side(width: int, height: int) -> None:
    """Raise ValueError if an image is too long to be padded to a square."""
    if max(width, height) > MAX_PADDED_SIDE:
        raise ValueError(
            f"Cannot pad a picture of {width}x{height} pixels to a square: the longer side may have "
            f"at most {MAX_PADDED_SIDE}. Make it smaller, or use image_aspect='square' or 'crop'."
        )


def to_rgb(image: Image.Image, transparent_color: tuple[int, ...] | None = None) -> Image.Image:
    """Convert `image` to mode RGB with 8 bits per channel.

    Transparency is dropped, not blended, as in the original, unless `transparent_color` is given. 16-bit
    grayscale is scaled from 0..65535 to 0..255 (PIL would clip it to white).

    Raises:
        ValueError: for floating-point images, whose value range is unknown.
    """
    if image.mode == "RGB":
        return image
    if image.mode == "F":
        raise ValueError(
            "Cannot read a floating-point picture (PIL mode 'F'), its range of values is unknown: "
            "convert it to 8 bits first, for example with image.point(...).convert('L')."
        )
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        # Mode I is used for 16-bit files, but also for small integers set by other code.
        if image.mode != "I" or values.max(initial=0) > 255:
            values = (values + 128) // 257
        return Image.fromarray(values.clip(0, 255).astype(np.uint8), mode="L").convert("RGB")
    transparent = "A" in image.getbands() or "transparency" in image.info
    if transparent_color is not None and transparent:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, (*transparent_color, 255))
        image = Image.alpha_composite(ground, image)
    return image.convert("RGB")


# Files and data URIs


def _read_file(
    path: Path,
    root: str | os.PathLike | None,
    max_bytes: int,
    name: str,
    allowed: bool,
    follow_links: bool,
) -> bytes:
    if not allowed:
        raise ValueError(f"Cannot read {name}: files are switched off (allow_files).")
    try:
        if root is not None:
            path = _inside(path, Path(root), name, follow_links)
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            raise ValueError(f"Cannot read {name}: not a regular file.")
        _check_size(info.st_size, max_bytes, name)
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except (FileNotFoundError, NotADirectoryError):
        where = f" in {str(root)!r}" if root is not None else ""
        raise FileNotFoundError(f"No such image file{where}: {name}.") from None
    except OSError as error:
        raise OSError(f"Cannot read {name}: {error.strerror or error}.") from None
    except ValueError as error:  # from pathlib, for an embedded null character for example
        raise ValueError(_with_name(error, f"Cannot read {name}", ".")) from None
    _check_size(len(data), max_bytes, name)
    return data


def _inside(path: Path, root: Path, name: str, follow_links: bool) -> Path:
    """Return the target of a path in the folder `root`; raise ValueError if it is outside."""
    if follow_links:
        # Remove dots in the text of the path: after a link they would lead elsewhere.
        folder = Path(os.path.abspath(root))
        found = Path(os.path.normpath(folder / path))
    else:
        try:
            folder = root.resolve()
            found = (folder / path).resolve()
        except RuntimeError:  # older Python releases raise it for a link to itself
            raise ValueError(f"Cannot read {name}: a link that leads to itself.") from None
    if not found.is_relative_to(folder):
        raise ValueError(f"Cannot read {name}: it lies outside of {str(folder)!r}.")
    return found


def is_base64_picture(text: str) -> bool:
    """Return whether `text` is an image in base64, judged by the first characters of image files."""
    return len(text) >= 40 and text.startswith(BASE64_BEGINNINGS) and bool(_BASE64.fullmatch(text))


def _read_base64(text: str, max_bytes: int, name: str) -> bytes:
    # Four characters encode three bytes.
    if len(text) > max_bytes * 4 // 3 + 4:
        _check_size(len(text) * 3 // 4, max_bytes, name)
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"Cannot read {name}: not valid base64 ({error}).") from None


def _read_data_uri(uri: str, max_bytes: int, name: str) -> bytes:
    header, comma, payload = uri[5:].partition(",")
    if not comma:
        raise ValueError(f"Cannot read {name}: no comma between its header and its data.")
    if header.lower().endswith(";base64"):
        data = _read_base64(unquote(payload), max_bytes, name)
    else:
        data = unquote_to_bytes(payload)
    _check_size(len(data), max_bytes, name)
    return data


# The web

# IPv6 networks that count as global but lead to this machine or a private network: site-local
# addresses, IPv4 addresses in an old notation, and translation to IPv4 inside one network.
_LOCAL_IPV6 = tuple(ipaddress.ip_network(n) for n in ("fec0::/10", "::/96", "64:ff9b:1::/48"))


def _is_public(address: str) -> bool:
    ip = ipaddress.ip_address(address.split("%", 1)[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if any(ip in network for network in _LOCAL_IPV6):
            return False
        # IPv6 addresses that embed an IPv4 address lead to that address.
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is None and ip in ipaddress.ip_network("64:ff9b::/96"):
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None and not _is_public(str(inner)):
            return False
        if ip.ipv4_mapped is not None:
            return True
    return ip.is_global and not ip.is_multicast


def _look_up(host: str, port: int) -> list[str]:
    entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in entries))


def _resolve(host: str, port: int, deadline: float, name: str) -> list[str]:
    """Resolve `host` in a thread, because the system resolver has no time limit."""
    answer: list[Any] = []

    def look_up() -> None:
        try:
            answer.append(_look_up(host, port))
        except (OSError, UnicodeError) as error:
            answer.append(error)

    thread = threading.Thread(target=look_up, daemon=True)
    thread.start()
    thread.join(max(0.0, deadline - time.monotonic()))
    if not answer:
        raise TimeoutError(f"Cannot fetch {name}: looking up {host!r} took too long.")
    if isinstance(answer[0], Exception):
        raise ConnectionError(f"Cannot fetch {name}: no address for {host!r} ({answer[0]}).")
    return answer[0]


class _DeadlineStream(io.RawIOBase):
    """Reads from a socket, with one deadline for all reads together."""

    def __init__(self, sock: socket.socket, remaining: Callable[[], float]):
        self._sock = sock
        self._remaining = remaining

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(self._remaining())
        return self._sock.recv_into(buffer)


class _DeadlineSocket:
    """The socket methods that http.client needs, each limited by one common deadline."""

    def __init__(self, sock: socket.socket, remaining: Callable[[], float]):
        self._sock = sock
        self._remaining = remaining

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_DeadlineStream(self._sock, self._remaining))

    def sendall(self, data: bytes) -> None:
        self._sock.settimeout(self._remaining())
        self._sock.sendall(data)

    def close(self) -> None:
        """Do nothing: http.client closes before the body is read, so the caller closes the socket."""


def _download(
    url: str, max_bytes: int, deadline: float, timeout: float, allow_private: bool, name: str
) -> bytes:
    def remaining() -> float:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    try:
        for _ in range(MAX_REDIRECTS + 1):
            answer = _fetch_once(url, max_bytes, deadline, remaining, allow_private, name)
            if isinstance(answer, bytes):
                return answer
            try:
                url = urljoin(url, answer)
            except ValueError as error:
                raise ValueError(
                    f"Cannot fetch {name}: redirected to no address ({_printable(error)})."
                ) from None
    except TimeoutError as error:
        raise TimeoutError(
            str(error)
            if str(error).startswith("Cannot")
            else f"Cannot fetch {name}: not done after {timeout:g} seconds."
        ) from None
    except http.client.HTTPException as error:
        raise ConnectionError(
            f"Cannot fetch {name}: broken HTTP answer ({type(error).__name__} {_printable(error)})."
        ) from None
    except OSError as error:
        raise ConnectionError(_with_name(error, f"Cannot fetch {name}", ".")) from None
    raise ValueError(f"Cannot fetch {name}: more than {MAX_REDIRECTS} redirects.")


def _fetch_once(
    url: str,
    max_bytes: int,
    deadline: float,
    remaining: Callable[[], float],
    allow_private: bool,
    name: str,
) -> bytes | str:
    """Send one request; return the body, or the address that the answer redirects to."""
    # Check the URL and the addresses it leads to.
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        raise ValueError(f"Cannot fetch {name}: {_printable(error)}.") from None
    if parts.scheme not in ("http", "https"):
        raise ValueError(
            f"Cannot fetch {name}: redirected to scheme {_printable(parts.scheme)!r}, only http and https are allowed."
        )
    if not parts.hostname or parts.username is not None:
        raise ValueError(
            f"Cannot fetch {name}: the URL needs a host name and no user name or password."
        )
    addresses = _resolve(parts.hostname, port, deadline, name)
    private = [address for address in addresses if not _is_public(address)]
    if private and not allow_private:
        raise ValueError(
            f"Cannot fetch {name}: {parts.hostname!r} is the private or local address {private[0]}; "
            "only public addresses are allowed, unless allow_private is set (maya chat: --allow-private)."
        )
    # Send the request.
    sock = _connect(addresses, port, remaining)
    try:
        if parts.scheme == "https":
            sock.settimeout(remaining())
            sock = ssl.create_default_context().wrap_socket(sock, server_hostname=parts.hostname)
        connection = http.client.HTTPConnection(parts.hostname, port)
        connection.sock = _DeadlineSocket(sock, remaining)  # type: ignore[assignment]
        target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
        if parts.query:
            target += "?" + quote(parts.query, safe="/%:@!$&'()*+,;=~-._?")
        connection.request(
            "GET",
            target,
            headers={"User-Agent": "maya-vlm", "Accept": "image/*", "Accept-Encoding": "identity"},
        )
        # Check the answer's headers.
        response = connection.getresponse()
        if response.status in (301, 302, 303, 307, 308):
            location = response.getheader("Location")
            if not location:
                raise ValueError(
                    f"Cannot fetch {name}: a redirect ({response.status}) that leads nowhere."
                )
            return location
        if response.status != 200:
            raise ConnectionError(
                f"Cannot fetch {name}: the server answered {response.status} {_printable(response.reason)}."
            )
        if response.getheader("Content-Encoding", "identity").lower() != "identity":
            raise ValueError(f"Cannot fetch {name}: compressed transfer, which was not asked for.")
        lengths = response.headers.get_all("Content-Length", [])
        if len(lengths) > 1 or not all(length.strip().isdecimal() for length in lengths):
            raise ValueError(
                f"Cannot fetch {name}: expected one Content-Length, found {_printable(', '.join(lengths))}."
            )
        if response.length is not None:
            _check_size(response.length, max_bytes, name)
        # Read the body.
        body = bytearray()
        while chunk := response.read1(65536):
            body += chunk
            if len(body) > max_bytes:
                raise ValueError(
                    f"Cannot fetch {name}: expected at most {max_bytes} bytes, found more."
                )
        if response.length:
            raise ConnectionError(
                f"Cannot fetch {name}: cut off, {response.length} bytes are missing."
            )
        _check_size(len(body), max_bytes, name)
        return bytes(body)
    finally:
        sock.close()


def _connect(addresses: list[str], port: int, remaining: Callable[[], float]) -> socket.socket:
    """Connect to the first of these addresses that responds, without resolving the name again."""
    for index, address in enumerate(addresses):
        try:
            return socket.create_connection((address, port), timeout=remaining())
        except OSError:
            if index == len(addresses) - 1:
                raise
    raise ConnectionError("no address")
