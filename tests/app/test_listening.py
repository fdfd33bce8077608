"""The sockets that the proxy listens on: TCP of both families, and the operator's."""

import socket
import stat
from pathlib import Path

import pytest

from proxy.app import listening
from proxy.core.errors import ConfigError
from proxy.settings import Settings
from proxy.storage.directory import Directory


def settings(listen: str) -> Settings:
    return Settings.model_validate({"listen": listen})


@pytest.mark.parametrize(
    ("listen", "client", "shown"),
    [
        ("127.0.0.1:0", "127.0.0.1", "127.0.0.1:"),
        ("0.0.0.0:0", "127.0.0.1", "0.0.0.0:"),
        ("[::1]:0", "::1", "[::1]:"),
        ("[::]:0", "::1", "[::]:"),
        ("[::]:0", "127.0.0.1", "[::]:"),  # both families
    ],
)
def test_clients_reach_the_address(listen: str, client: str, shown: str) -> None:
    with listening.public(settings(listen)) as listener:
        port = listener.getsockname()[1]
        assert listening.address(listener) == f"{shown}{port}"
        socket.create_connection((client, port), timeout=30).close()


def test_an_address_in_use_is_named() -> None:
    with listening.public(settings("127.0.0.1:0")) as listener:
        taken = listening.address(listener)
        with pytest.raises(ConfigError, match=f"listen: {taken} cannot be listened on") as failure:
            listening.public(settings(taken))
    assert "--listen" in str(failure.value)


def test_of_several_sockets_all_listen_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[socket.socket] = []
    create = socket.create_server

    def failing(*address: object, **options: object) -> socket.socket:
        if len(made) == 3:
            raise OSError(24, "Too many open files")
        made.append(create(*address, **options))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr(socket, "create_server", failing)
    several = Settings.model_validate({"listen": "127.0.0.1:0", "workers": 3})
    with pytest.raises(ConfigError, match="Too many open files"):
        listening.for_processes(several)
    assert [one.fileno() for one in made] == [-1, -1, -1]


def test_the_admin_socket_is_for_this_user_and_goes_with_the_server(tmp_path: Path) -> None:
    root = tmp_path / ("long" * 40)  # more than a socket's path may have
    directory, path = Directory(root), root / "admin.sock"
    try:
        path.write_text("left by a killed process")
        with listening.admin(directory) as listener:
            mode = path.stat().st_mode
            assert stat.S_ISSOCK(mode)
            assert stat.S_IMODE(mode) == 0o600
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(f"/proc/self/fd/{directory.fd}/admin.sock")
            assert listener.fileno() >= 0
        assert not path.exists()
        assert listener.fileno() < 0
    finally:
        directory.close()


def test_an_admin_socket_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    directory = Directory(tmp_path)
    (tmp_path / "admin.sock").mkdir()
    (tmp_path / "admin.sock" / "kept").write_text("")
    try:
        refused = pytest.raises(ConfigError, match=r"admin\.socket: .*/admin\.sock cannot be")
        with refused, listening.admin(directory):
            pass
    finally:
        directory.close()
