"""The guarded image loader: what it reads, and what it refuses with one clear line."""

import base64
import contextlib
import io
import socket
import struct
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from processing_maya import image_loading_maya as images
from processing_maya.image_loading_maya import load_image


def png(size=(7, 5), color=(200, 30, 40), mode="RGB"):
    buffer = io.BytesIO()
    Image.new(mode, size, color).save(buffer, format="PNG")
    return buffer.getvalue()


def one_line(error):
    text = str(error.value)
    assert text
    assert "\n" not in text
    return text


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def answer(self, body, status=200, headers=()):
        self.send_response(status)
        for key, value in headers:
            self.send_header(key, value)
        if not any(key == "Content-Length" for key, _ in headers):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        server = self.server
        server.hits.append(self.path)
        if self.path.startswith("/image"):
            self.answer(png())
        elif self.path == "/closed":
            self.answer(png(), headers=[("Connection", "close")])
        elif self.path == "/chunked":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            body = png()
            for at in range(0, len(body), 20):
                piece = body[at : at + 20]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\n\r\n")
        elif self.path == "/redirect":
            self.answer(b"", 302, [("Location", "/image.png")])
        elif self.path == "/to-other-host":
            self.answer(
                b"", 302, [("Location", f"http://inside.test:{server.server_port}/image.png")]
            )
        elif self.path == "/to-file":
            self.answer(b"", 302, [("Location", "file:///etc/hostname")])
        elif self.path == "/nowhere":
            self.answer(b"", 302)
        elif self.path == "/loop":
            self.answer(b"", 302, [("Location", "/loop")])
        elif self.path.startswith("/redirects/"):
            left = int(self.path.rpartition("/")[2])
            place = f"/redirects/{left - 1}" if left > 1 else "/image.png"
            self.answer(b"", 302, [("Location", place)])
        elif self.path == "/to-no-address":
            self.answer(b"", 302, [("Location", "http://[::1")])
        elif self.path == "/negative-length":
            self.answer(png(), headers=[("Content-Length", "-1")])
        elif self.path == "/two-lengths":
            size = len(png())
            self.answer(
                png(), headers=[("Content-Length", str(size - 9)), ("Content-Length", str(size))]
            )
        elif self.path == "/escape":
            self.send_response(403, "\x1b[2J\x07" + "A" * 60_000)
            self.end_headers()
        elif self.path == "/declared-large":
            self.answer(b"x", headers=[("Content-Length", str(10**9))])
        elif self.path == "/large":
            self.send_response(200)  # no length: the body ends when the connection does
            self.end_headers()
            try:
                for _ in range(1000):
                    self.wfile.write(bytes(65536))
            except OSError:
                server.gave_up.set()
        elif self.path == "/short":
            self.answer(png()[:-10], headers=[("Content-Length", str(len(png())))])
        elif self.path == "/slow-body":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.drip()
        elif self.path == "/slow-header":
            self.wfile.write(b"HTTP/1.0 200 OK\r\nX-Slow: ")
            self.drip()
        elif self.path == "/gzip":
            self.answer(png(), headers=[("Content-Encoding", "gzip")])
        elif self.path == "/text":
            self.answer(b"<html>not a picture</html>")
        elif self.path == "/empty":
            self.answer(b"")
        else:
            self.answer(b"", 404)

    def drip(self):
        # Each byte comes in time for a per-read limit; only a limit on the whole stops this.
        while not self.server.stopping.wait(0.05):
            try:
                self.wfile.write(b"x")
                self.wfile.flush()
            except OSError:
                return


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.hits, server.gave_up, server.stopping = [], threading.Event(), threading.Event()
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    )
    thread.start()
    server.url = f"http://127.0.0.1:{server.server_port}"
    yield server
    server.stopping.set()
    server.shutdown()
    server.server_close()


class TestMemoryAndFiles:
    def test_pil_bytes_path_and_string(self, tmp_path):
        file = tmp_path / "a.png"
        file.write_bytes(png())
        for source in (
            Image.open(file),
            png(),
            bytearray(png()),
            memoryview(png()),
            file,
            str(file),
        ):
            image = load_image(source)
            assert image.size == (7, 5)
            assert image.getpixel((0, 0)) == (200, 30, 40)

    def test_root_confines(self, tmp_path):
        root = tmp_path / "data"
        (root / "sub").mkdir(parents=True)
        (root / "sub" / "in.png").write_bytes(png())
        (tmp_path / "out.png").write_bytes(png())
        (root / "link.png").symlink_to(tmp_path / "out.png")
        (root / "good-link.png").symlink_to(root / "sub" / "in.png")
        assert load_image("sub/in.png", root=root).size == (7, 5)
        assert load_image(str(root / "sub" / "in.png"), root=root).size == (7, 5)
        assert load_image("good-link.png", root=root).size == (7, 5)
        for outside in ("../out.png", "sub/../../out.png", str(tmp_path / "out.png"), "link.png"):
            with pytest.raises(ValueError, match="outside") as error:
                load_image(outside, root=root)
            assert outside in one_line(error)

    def test_links_may_lead_out_where_the_folder_is_ones_own(self, tmp_path):
        root = tmp_path / "data"
        (tmp_path / "other" / "coco").mkdir(parents=True)
        root.mkdir()
        (tmp_path / "other" / "coco" / "1.png").write_bytes(png())
        (root / "coco").symlink_to(tmp_path / "other" / "coco")
        (root / "loop.png").symlink_to(root / "loop.png")
        with pytest.raises(ValueError, match="outside"):
            load_image("coco/1.png", root=root)
        assert load_image("coco/1.png", root=root, follow_links=True).size == (7, 5)
        assert load_image(str(root / "coco" / "1.png"), root=root, follow_links=True).size == (7, 5)
        for outside in ("../other/coco/1.png", "coco/../../other/coco/1.png", str(tmp_path / "x")):
            with pytest.raises(ValueError, match="outside"):
                load_image(outside, root=root, follow_links=True)
        for follow in (True, False):
            with pytest.raises((ValueError, OSError)) as error:
                load_image("loop.png", root=root, follow_links=follow)
            assert "loop.png" in one_line(error)

    def test_missing_file_names_it_and_the_root(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no-such\.png") as error:
            load_image("no-such.png", root=tmp_path)
        assert str(tmp_path) in one_line(error)

    def test_folder_and_device_and_null_character_are_refused(self, tmp_path):
        for path in (tmp_path, "/dev/zero"):
            with pytest.raises(ValueError, match="not a regular file"):
                load_image(path)
        with pytest.raises(ValueError, match="null"):
            load_image("a\0b.png")

    def test_wrong_type(self):
        with pytest.raises(ValueError, match="NoneType"):
            load_image(None)

    def test_data_uri(self):
        encoded = base64.b64encode(png()).decode()
        assert load_image(f"data:image/png;base64,{encoded}").size == (7, 5)
        assert load_image("data:image/png;base64," + encoded.replace("+", "%2B")).size == (7, 5)
        for broken, message in (
            ("data:image/png;base64", "no comma"),
            ("data:image/png;base64,@@@@", "not valid base64"),
            ("data:image/png;base64,", "empty"),
        ):
            with pytest.raises(ValueError, match=message):
                load_image(broken)
        with pytest.raises(ValueError, match="expected at most 50 bytes, found"):
            load_image(f"data:image/png;base64,{encoded}", max_bytes=50)

    def test_size_limit_of_bytes_and_files(self, tmp_path):
        data = png()
        (tmp_path / "a.png").write_bytes(data)
        for source in (data, tmp_path / "a.png"):
            assert load_image(source, max_bytes=len(data)).size == (7, 5)
            with pytest.raises(
                ValueError, match=f"expected at most {len(data) - 1} bytes, found {len(data)}"
            ):
                load_image(source, max_bytes=len(data) - 1)
        with pytest.raises(ValueError, match="empty"):
            load_image(b"")


class TestDecoding:
    def test_pixel_limit_is_checked_in_the_header(self):
        # A file of a hundred bytes that claims 40000x40000: decoding it would need gigabytes.
        def chunk(kind, body):
            return (
                struct.pack(">I", len(body))
                + kind
                + body
                + struct.pack(">I", zlib.crc32(kind + body))
            )

        def claims(width, height):
            header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
            body = chunk(b"IDAT", zlib.compress(b"\0" * 100))
            return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")

        for width, height in ((40000, 40000), (10000, 10000), (9000, 8000)):
            with pytest.raises(ValueError, match=r"pixels|bomb") as error:
                load_image(claims(width, height))
            one_line(error)
        with pytest.raises(ValueError, match="expected at most 34 pixels, found 7x5"):
            load_image(png(), max_pixels=34)
        assert load_image(png(), max_pixels=35).size == (7, 5)
        with pytest.raises(ValueError, match="expected at most 34 pixels, found 7x5"):
            load_image(Image.new("RGB", (7, 5)), max_pixels=34)

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
    def test_cut_off_file_is_refused(self, kind):
        buffer = io.BytesIO()
        noise = Image.effect_noise((64, 64), 80).convert("RGB")
        noise.save(buffer, format=kind)
        data = buffer.getvalue()
        assert load_image(data).size == (64, 64)
        with pytest.raises(ValueError, match="Cannot read image bytes") as error:
            load_image(data[: len(data) // 2])
        one_line(error)

    def test_lazy_pil_image_is_checked_too(self, tmp_path):
        buffer = io.BytesIO()
        Image.effect_noise((64, 64), 80).save(buffer, format="PNG")
        (tmp_path / "cut.png").write_bytes(buffer.getvalue()[:900])
        with pytest.raises(ValueError, match=r"cut\.png"):
            load_image(Image.open(tmp_path / "cut.png"))

    def test_a_picture_without_pixels(self):
        for size in ((0, 5), (5, 0)):
            with pytest.raises(ValueError, match="expected at least one pixel, found"):
                load_image(Image.new("RGB", size))

    def test_what_pil_says_of_odd_tags_is_not_printed(self, recwarn):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8)).save(buffer, format="TIFF")
        data = bytearray(buffer.getvalue())
        place = data.index(struct.pack("<HHI", 258, 3, 3))
        data[place : place + 8] = struct.pack("<HHI", 270, 2, 9_000_000)
        with contextlib.suppress(ValueError):
            load_image(bytes(data))
        assert not recwarn.list

    def test_not_a_picture(self):
        with pytest.raises(ValueError, match="not a picture in a known format"):
            load_image(b"hello world, this is text")

    def test_postscript_is_never_opened(self):
        eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
        with pytest.raises(ValueError, match="not a picture"):
            load_image(eps)

    def test_compressed_text_bomb(self):
        def chunk(kind, body):
            return (
                struct.pack(">I", len(body))
                + kind
                + body
                + struct.pack(">I", zlib.crc32(kind + body))
            )

        data = png()
        bomb = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(50_000_000)))
        with pytest.raises(ValueError, match="Cannot read image bytes"):
            load_image(data[:33] + bomb + data[33:])

    def test_first_frame_of_an_animation(self):
        buffer = io.BytesIO()
        frames = [Image.new("RGB", (4, 4), color) for color in ((255, 0, 0), (0, 255, 0))]
        frames[0].save(buffer, format="GIF", save_all=True, append_images=frames[1:])
        assert load_image(buffer.getvalue()).convert("RGB").getpixel((1, 1)) == (255, 0, 0)


class TestWeb:
    def test_plain_redirected_chunked_and_closed(self, server):
        for path in (
            "/image.png",
            "/image%20one.png?a=b c",
            "/image-\u00e9.png",
            "/redirect",
            "/chunked",
            "/closed",
        ):
            image = load_image(server.url + path, allow_private=True)
            assert image.getpixel((0, 0)) == (200, 30, 40), path

    def test_local_addresses_are_refused_without_a_request(self, server):
        port = server.server_port
        for host in (
            "127.0.0.1",
            "localhost",
            "[::1]",
            "[::ffff:127.0.0.1]",
            "2130706433",
            "0.0.0.0",
        ):
            with pytest.raises((ValueError, ConnectionError)) as error:
                load_image(f"http://{host}:{port}/image.png")
            one_line(error)
        assert server.hits == []

    @pytest.mark.parametrize(
        ("address", "public"),
        [
            ("8.8.8.8", True),
            ("2606:4700::1111", True),
            ("::ffff:8.8.8.8", True),
            ("127.0.0.1", False),
            ("10.1.2.3", False),
            ("172.16.0.1", False),
            ("192.168.1.1", False),
            ("169.254.169.254", False),
            ("100.64.0.1", False),
            ("0.0.0.0", False),
            ("224.0.0.1", False),
            ("255.255.255.255", False),
            ("::", False),
            ("::1", False),
            ("fe80::1%eth0", False),
            ("fd00::1", False),
            ("ff02::1", False),
            ("::ffff:10.0.0.1", False),
            ("64:ff9b::7f00:1", False),
            ("2002:7f00:0001::", False),
            ("::127.0.0.1", False),
            ("::8.8.8.8", False),
            ("fec0::1", False),
            ("64:ff9b:1::a9fe:a9fe", False),
            ("64:ff9b::808:808", True),
        ],
    )
    def test_public_addresses(self, address, public):
        assert images._is_public(address) is public

    def test_every_address_of_a_name_must_be_public(self, monkeypatch):
        monkeypatch.setattr(images, "_look_up", lambda host, port: ["8.8.8.8", "10.0.0.7"])
        with pytest.raises(
            ValueError, match=r"'mixed\.test' is the private or local address 10\.0\.0\.7"
        ):
            load_image("http://mixed.test/a.png")

    def test_redirect_to_a_private_address_is_refused(self, server, monkeypatch):
        # outside.test counts as public here although it is this machine; inside.test is private.
        addresses = {"outside.test": ["127.0.0.1"], "inside.test": ["127.0.0.2"]}
        monkeypatch.setattr(images, "_look_up", lambda host, port: addresses[host])
        monkeypatch.setattr(images, "_is_public", lambda address: address == "127.0.0.1")
        base = f"http://outside.test:{server.server_port}"
        assert load_image(base + "/redirect").size == (7, 5)
        server.hits.clear()
        with pytest.raises(
            ValueError, match=r"'inside\.test' is the private or local address 127\.0\.0\.2"
        ):
            load_image(base + "/to-other-host")
        assert server.hits == ["/to-other-host"]

    def test_the_checked_address_is_the_one_connected_to(self, server, monkeypatch):
        # A name that leads elsewhere when it is looked up a second time: it never is.
        lookups = []

        def look_up(host, port):
            lookups.append(host)
            return ["127.0.0.1"]

        real = socket.getaddrinfo

        def numeric_only(host, *args, **kwargs):
            assert host == "127.0.0.1", f"{host} was looked up again"
            return real(host, *args, **kwargs)

        monkeypatch.setattr(images, "_look_up", look_up)
        monkeypatch.setattr(socket, "getaddrinfo", numeric_only)
        url = f"http://rebinding.test:{server.server_port}/image.png"
        assert load_image(url, allow_private=True).size == (7, 5)
        assert lookups == ["rebinding.test"]

    def test_redirects_that_are_refused(self, server):
        for path, message in (
            ("/loop", "more than 5 redirects"),
            ("/to-file", "scheme 'file'"),
            ("/nowhere", "nowhere"),
        ):
            with pytest.raises(ValueError, match=message):
                load_image(server.url + path, allow_private=True)
        assert server.hits.count("/loop") == 6
        assert load_image(server.url + "/redirects/5", allow_private=True).size == (7, 5)
        for path, message in (
            ("/redirects/6", "more than 5 redirects"),
            ("/to-no-address", "redirected to no address"),
        ):
            with pytest.raises(ValueError, match=message):
                load_image(server.url + path, allow_private=True)

    def test_other_schemes_and_passwords(self):
        for url in ("file:///etc/passwd", "ftp://example.org/a.png", "gopher://x/1"):
            with pytest.raises(ValueError, match="not allowed"):
                load_image(url)
        with pytest.raises(ValueError, match="no user name"):
            load_image("http://me:secret@8.8.8.8/a.png")
        with pytest.raises(ValueError, match="host name"):
            load_image("http:///a.png")
        with pytest.raises(ValueError, match=r"[Pp]ort"):
            load_image("http://8.8.8.8:99999999/a.png")

    def test_size_limits(self, server):
        with pytest.raises(ValueError, match="found 1000000000"):
            load_image(server.url + "/declared-large", allow_private=True)
        with pytest.raises(ValueError, match="expected at most 100000 bytes, found more"):
            load_image(server.url + "/large", max_bytes=100_000, allow_private=True)
        assert server.gave_up.wait(10), "the server could send everything"

    @pytest.mark.parametrize("path", ["/slow-body", "/slow-header"])
    def test_time_limit_is_for_the_whole(self, server, path):
        started = time.monotonic()
        with pytest.raises(TimeoutError, match=r"not done after 0\.5 seconds") as error:
            load_image(server.url + path, timeout=0.5, allow_private=True)
        assert path in one_line(error)
        assert time.monotonic() - started >= 0.5

    def test_slow_name_server(self, monkeypatch):
        release = threading.Event()
        monkeypatch.setattr(images, "_look_up", lambda host, port: release.wait(30) and [])
        with pytest.raises(TimeoutError, match=r"looking up 'slow\.test' took too long"):
            load_image("http://slow.test/a.png", timeout=0.2)
        release.set()

    def test_broken_answers(self, server):
        for path, kind, message in (
            ("/missing", OSError, "404"),
            ("/short", OSError, "cut off, 10 bytes are missing"),
            ("/gzip", ValueError, "compressed transfer"),
            ("/text", ValueError, "not a picture"),
            ("/empty", ValueError, "empty"),
            ("/negative-length", ValueError, "expected one Content-Length, found -1"),
            ("/two-lengths", ValueError, "expected one Content-Length, found"),
        ):
            with pytest.raises(kind, match=message) as error:
                load_image(server.url + path, allow_private=True)
            assert path in one_line(error)

    def test_what_a_server_says_is_told_short_and_printable(self, server):
        with pytest.raises(ConnectionError, match="answered 403") as error:
            load_image(server.url + "/escape", allow_private=True)
        assert one_line(error).isprintable()
        assert len(one_line(error)) < 500

    def test_https_to_a_server_without_it(self, server):
        url = server.url.replace("http://", "https://")
        with pytest.raises(ConnectionError, match="Cannot fetch") as error:
            load_image(url + "/image.png", timeout=10, allow_private=True)
        assert "SSL" in one_line(error)

    def test_no_server(self):
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{unused.getsockname()[1]}/a.png"
            with pytest.raises(ConnectionError, match="Cannot fetch") as error:
                load_image(url, allow_private=True)
        one_line(error)
