"""Builds the source of credentials that the settings of an upstream name."""

import shutil
from functools import partial

from yarl import URL

from proxy.core.errors import ConfigError
from proxy.settings.upstreams import ExecCredentials, KubeletCredentials, Upstream
from proxy.settings.upstreams import UpstreamCredentials as CredentialsSettings
from proxy.upstream.credentials import Credential, Credentials, PasswordFile, StaticCredentials
from proxy.upstream.credentials.aws import AWS, region_of
from proxy.upstream.credentials.azure import Azure
from proxy.upstream.credentials.caller import CallerCredentials
from proxy.upstream.credentials.cloud import EXTRAS, load
from proxy.upstream.credentials.docker_config import DockerConfig, server_of
from proxy.upstream.credentials.google import Google
from proxy.upstream.credentials.helper import ask_helper
from proxy.upstream.credentials.kubelet import KubeletPlugin
from proxy.upstream.credentials.program import Program
from proxy.upstream.credentials.renewing import RenewingCredentials
from proxy.upstream.transport import Transport


def check_credentials(name: str, configured: Upstream) -> None:
    """Return if the source of an upstream can be built on this machine. Raises ``ConfigError``."""
    source, place = configured.credentials, f"upstreams.{name}.credentials"
    if not isinstance(source, CredentialsSettings):
        return
    for program in _programs(source):
        if shutil.which(program.name) is None:
            raise ConfigError(f"{place}: {program.name} is not a program that can be run")
    for extra in EXTRAS:
        if getattr(source, extra) is not None:
            try:
                load(extra, EXTRAS[extra])
            except ConfigError as error:
                raise ConfigError(f"{place}.{extra}: {error}") from None
    host = URL(configured.url).host or ""
    if source.aws is not None and source.aws.region is None and region_of(host) is None:
        raise ConfigError(f"{place}.aws: the host name {host} contains no region; set region")


def make_credentials(configured: Upstream, transport: Transport) -> Credentials:
    """Return the configured source; ``check_credentials`` has accepted it."""
    source = configured.credentials
    if configured.asks_as_caller:
        return CallerCredentials(transport.name)
    if isinstance(source, CredentialsSettings):
        return _from_source(source, transport)
    if configured.username is None:
        return StaticCredentials()
    if configured.password_file is not None:
        return PasswordFile(configured.username, configured.password_file)
    assert configured.password is not None
    password = configured.password.get_secret_value()
    return StaticCredentials(Credential(configured.username, password), "password")


def _from_source(source: CredentialsSettings, transport: Transport) -> Credentials:
    url = transport.url
    if source.docker_config is not None:
        return DockerConfig(source.docker_config, url)
    if source.kubelet is not None:
        life = source.kubelet.default_cache_duration
        return KubeletPlugin(_plugin(source.kubelet), url, life)
    if source.exec is not None:
        ask = partial(ask_helper, _helper(source.exec), server_of(url))
        return RenewingCredentials("exec", ask)
    if source.aws is not None:
        return RenewingCredentials("aws", AWS(url.host or "", source.aws).fetch)
    if source.google is not None:
        return RenewingCredentials("google", Google(source.google).fetch)
    assert source.azure is not None
    return RenewingCredentials("azure", Azure(transport, source.azure).fetch)


def _programs(source: CredentialsSettings) -> list[Program]:
    programs = [] if source.exec is None else [_helper(source.exec)]
    return programs if source.kubelet is None else [*programs, _plugin(source.kubelet)]


def _helper(settings: ExecCredentials) -> Program:
    return Program(settings.command, _environment(settings))


def _plugin(settings: KubeletCredentials) -> Program:
    return Program((settings.name, *(settings.args or ())), _environment(settings))


def _environment(settings: ExecCredentials | KubeletCredentials) -> dict[str, str]:
    return {name: value.get_secret_value() for name, value in (settings.env or {}).items()}
