"""The files of each client, exactly as it has to find them. ``docs/clients.md`` is made of these.

Clients differ in their support for mirrors; the docstring of a recipe explains it.
"""

import json
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from proxy.cli.client_setup import ClientName
from proxy.cli.clients.instance import DOCKER_HUB, Instance
from proxy.cli.clients.merging import Format, Unreadable

READABLE: Final = 0o644
SECRET: Final = 0o600
CERTS_D: Final = "/etc/containerd/certs.d"

Read = Callable[[str], str | None]
"""Returns the text of a file of the machine, None if there is none."""


@dataclass(frozen=True, slots=True)
class File:
    """A file of a client: its required settings, and how they are merged into an existing file."""

    path: str
    format: Format
    text: str
    mode: int = READABLE
    """Mode of a new file."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """The setup of one client: files, commands to run afterwards, examples, and notes."""

    files: tuple[File, ...] = ()
    commands: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def recipe(client: ClientName, instance: Instance, read: Read = lambda _: None) -> Recipe:
    """Return the recipe of a client; ``read`` returns the files that it depends on.

    Raises ``Unreadable`` if one of these rules the recipe out.
    """
    return _RECIPES[client](instance, read)


def _docker(instance: Instance, _: Read) -> Recipe:
    """Return the recipe of dockerd: mirrors of Docker Hub only, requests name no registry."""
    settings: dict[str, list[str]] = {"registry-mirrors": [instance.address]}
    if instance.is_plain and not instance.is_loopback:
        settings["insecure-registries"] = [instance.host]
    files = [_json_file("/etc/docker/daemon.json", settings)]
    files += _authority(instance, f"/etc/docker/certs.d/{instance.host}/ca.crt")
    notes = [_by_path("Docker mirrors Docker Hub only. Pull images of other registries", instance)]
    if instance.default != DOCKER_HUB:
        notes.append(
            f"Docker does not say which registry it means, and default_upstream is "
            f"{instance.default}: the mirror cannot work."
        )
    if instance.asks_for_login:
        notes.append(
            "Docker sends a mirror no login but the one of Docker Hub: let rules allow a network "
            "or client certificates. Pulls by path need: docker login " + instance.host
        )
    return Recipe(tuple(files), ("systemctl reload docker",), (), tuple(notes))


def _containerd(instance: Instance, read: Read) -> Recipe:
    """Return the recipe of containerd: ``ns`` names the registry, CRI needs ``config_path``."""
    config, directory = _containerd_config(read("/etc/containerd/config.toml"))
    place = "/etc/containerd/millpond-ca.crt"
    lines = [f'[host."{instance.address}"]', '  capabilities = ["pull", "resolve"]']
    if instance.ca is not None:
        lines.append(f'  ca = "{place}"')
    if instance.login is not None:
        lines.append(f'  [host."{instance.address}".header]')
        lines.append(f'    Authorization = "Basic {instance.login.basic}"')
    host = "\n".join(lines) + "\n"
    mode = SECRET if instance.login else READABLE
    hosts = [
        File(
            f"{directory}/{registry.name}/hosts.toml",
            Format.TOML,
            f'server = "{registry.server}"\n\n{host}',
            mode,
        )
        for registry in instance.registries
    ]
    notes = [
        "containerd 2.x also reads this version of config.toml.",
        "Hosts that a hosts.toml has already are asked first.",
        f"nerdctl reads {directory} by default, ctr with --hosts-dir {directory}.",
    ]
    if instance.asks_for_login and instance.login is None:
        notes.append("Millpond asks for a login: give --user NAME --password-file FILE.")
    files = (*hosts, *_authority(instance, place), config)
    return Recipe(files, ("systemctl restart containerd",), (), tuple(notes))


def _containerd_config(current: str | None) -> tuple[File, str]:
    """Return config.toml and the directory of the hosts files: the configured one, if there is one.

    The plugin's name depends on the version of the file. containerd does not start with both
    ``config_path`` and the older ``mirrors``.
    """
    path = "/etc/containerd/config.toml"
    try:
        document = tomllib.loads(current or "version = 2")
    except tomllib.TOMLDecodeError as error:
        raise Unreadable(f"{path}: {error}") from None
    version = document.get("version", 1)
    plugin = _CRI_PLUGINS.get(version)
    if plugin is None:
        raise Unreadable(f"{path}: version {version}; containerd config migrate makes a newer one")
    try:
        registry = document.get("plugins", {}).get(plugin, {}).get("registry", {})
        if registry.get("mirrors"):
            raise Unreadable(
                f"{path}: has registry.mirrors, with which containerd allows no config_path; "
                "move these mirrors into hosts.toml files first"
            )
        configured = str(registry.get("config_path") or CERTS_D)
    except AttributeError:
        raise Unreadable(f"{path}: plugins is not a table of tables") from None
    text = f'version = {version}\n[plugins."{plugin}".registry]\n  config_path = "{configured}"\n'
    return File(path, Format.TOML, text), configured.split(":", maxsplit=1)[0]


_CRI_PLUGINS: Final = {2: "io.containerd.grpc.v1.cri", 3: "io.containerd.cri.v1.images"}


def _registries_conf(instance: Instance) -> tuple[File, ...]:
    """Return the drop-in of containers/image, which names no registry: the path has to."""
    tables = []
    for registry in instance.registries:
        lines = ["[[registry]]", f'location = "{registry.name}"', "[[registry.mirror]]"]
        lines.append(f'location = "{instance.host}/{registry.name}"')
        if instance.is_plain:
            lines.append("insecure = true")
        tables.append("\n".join(lines) + "\n")
    path = "/etc/containers/registries.conf.d/50-millpond.conf"
    place = f"/etc/containers/certs.d/{instance.host}/ca.crt"
    return (File(path, Format.TOML, "\n".join(tables)), *_authority(instance, place))


def _podman(instance: Instance, _: Read) -> Recipe:
    notes = ["Buildah and Skopeo read the same file."]
    return Recipe(_registries_conf(instance), _login(instance, "podman"), (), tuple(notes))


def _skopeo(instance: Instance, _: Read) -> Recipe:
    notes = ["skopeo inspect reads the list of tags from the registry; with --no-tags it does not."]
    return Recipe(_registries_conf(instance), _login(instance, "skopeo"), (), tuple(notes))


def _crio(instance: Instance, _: Read) -> Recipe:
    """CRI-O sends a mirror the login of the mirror's host, and never a pod's pull secret."""
    notes = []
    if instance.asks_for_login:
        notes.append(
            f"CRI-O reads the login for {instance.host} from its global_auth_file; "
            "podman login --authfile FILE writes it."
        )
    return Recipe(_registries_conf(instance), ("systemctl reload crio",), (), tuple(notes))


def _buildkit(instance: Instance, _: Read) -> Recipe:
    """BuildKit names the registry with ``ns``, as containerd does."""
    place = "/etc/buildkit/millpond-ca.crt"
    lines = []
    for registry in instance.registries:
        lines.append(f'[registry."{registry.name}"]')
        lines.append(f'  mirrors = ["{instance.host}"]')
    if instance.is_plain or instance.ca is not None:
        lines.append(f'[registry."{instance.host}"]')
        lines.append("  http = true" if instance.is_plain else f'  ca = ["{place}"]')
    file = File("/etc/buildkit/buildkitd.toml", Format.TOML, "\n".join(lines) + "\n")
    notes = [
        "A builder in a container has a loopback of its own; give it the network of the host: "
        "docker buildx create --use --driver-opt network=host --buildkitd-config " + file.path,
        "The builder inside Docker reads registry-mirrors in daemon.json instead.",
    ]
    files = (file, *_authority(instance, place))
    commands = ("systemctl restart buildkit", *_login(instance, "docker"))
    return Recipe(files, commands, (), tuple(notes))


def _k3s(instance: Instance, _: Read) -> Recipe:
    place = "/etc/rancher/k3s/millpond-ca.crt"
    lines = ["mirrors:"]
    for registry in instance.registries:
        lines += [f"  {_yaml(registry.name)}:", f'    endpoint: ["{instance.address}"]']
    if instance.ca is not None or instance.login is not None:
        lines += ["configs:", f"  {_yaml(instance.host)}:"]
    if instance.login is not None:
        lines.append("    auth:")
        lines.append(f"      username: {json.dumps(instance.login.user)}")
        lines.append(f"      password: {json.dumps(instance.login.password)}")
    if instance.ca is not None:
        lines += ["    tls:", f"      ca_file: {place}"]
    mode = SECRET if instance.login else READABLE
    file = File("/etc/rancher/k3s/registries.yaml", Format.YAML, "\n".join(lines) + "\n", mode)
    notes = [
        "Every node needs the file. On agents restart k3s-agent.",
        "RKE2 reads /etc/rancher/rke2/registries.yaml; restart rke2-server or rke2-agent.",
    ]
    if instance.asks_for_login and instance.login is None:
        notes.append("Millpond asks for a login: give --user NAME --password-file FILE.")
    files = (file, *_authority(instance, place))
    return Recipe(files, ("systemctl restart k3s",), (), tuple(notes))


def _kaniko(instance: Instance, _: Read) -> Recipe:
    """Return the recipe of kaniko, whose requests do not name the registry.

    A path cannot either: one that begins with a host name leads to that host (``NewRepository`` of
    go-containerregistry). So registries besides Docker Hub need a host name at Millpond, or an
    alias without a dot.
    """
    flags, hosts, unmapped = _kaniko_maps(instance)
    if instance.is_plain:
        flags += [f"--insecure-registry={host}" for host in hosts]
    if instance.ca is not None:
        flags += [f"--registry-certificate={host}=/kaniko/millpond-ca.crt" for host in hosts]
    notes = ["127.0.0.1 is the container that kaniko runs in."] if instance.is_loopback else []
    if instance.ca is not None:
        notes.append("Mount the authority's certificate as /kaniko/millpond-ca.crt.")
    if unmapped:
        notes.append(
            f"kaniko can map {', '.join(unmapped)} only with hostnames, or an alias without a "
            f"dot, in Millpond's settings. Else write FROM {instance.host}/{unmapped[0]}/…"
        )
    if instance.asks_for_login:
        notes.append(f"Put the login for {instance.host} into /kaniko/.docker/config.json.")
    notes.append(
        "KANIKO_REGISTRY_MIRROR and KANIKO_REGISTRY_MAP are the same as environment variables."
    )
    example = " \\\n  ".join(("/kaniko/executor", *flags))
    return Recipe((), (), (example,), tuple(notes))


def _kaniko_maps(instance: Instance) -> tuple[list[str], list[str], list[str]]:
    """Return flags that map registries, the hosts in them, and registries that have no map."""
    flags = [f"--registry-mirror={instance.host}"] if instance.mirrors_docker_hub else []
    hosts, unmapped = [instance.host], []
    for registry in instance.registries:
        if registry.name == DOCKER_HUB:
            continue
        alias = next((name for name in registry.aliases if not set(name) & {".", ":"}), None)
        if registry.hostnames:
            host = instance.host.replace(instance.url.host or "", registry.hostnames[0])
            hosts.append(host)
            flags.append(f"--registry-map={registry.name}={host}")
        elif alias is not None:
            flags.append(f"--registry-map={registry.name}={instance.host}/{alias}")
        else:
            unmapped.append(registry.name)
    return flags, hosts, unmapped


def _helm(instance: Instance, _: Read) -> Recipe:
    """Helm has no mirrors: charts are addressed at Millpond, by path."""
    option = " --plain-http" if instance.is_plain else ""
    if instance.ca is not None:
        option = " --ca-file /etc/millpond-ca.crt"
    names = [registry.name for registry in instance.registries]
    examples = [f"helm pull oci://{instance.host}/{name}/ORG/CHART{option}" for name in names]
    files = _authority(instance, "/etc/millpond-ca.crt")
    login = f"helm registry login {instance.host}{option}"
    commands = (login,) if instance.asks_for_login else ()
    notes = (
        "Helm has no mirrors.",
        "In Chart.yaml, write the same addresses into repository, without the chart's name.",
    )
    return Recipe(tuple(files), commands, tuple(examples), notes)


def _json_file(path: str, settings: dict[str, list[str]]) -> File:
    return File(path, Format.JSON, json.dumps(settings, indent=2) + "\n")


def _authority(instance: Instance, path: str) -> list[File]:
    """Return the file with the certificate of the authority that signed Millpond's."""
    return [] if instance.ca is None else [File(path, Format.PEM, instance.ca)]


def _login(instance: Instance, program: str) -> tuple[str, ...]:
    """Return the command that logs in to Millpond's host, if it asks for that."""
    option = " --tls-verify=false" if instance.is_plain and program != "docker" else ""
    return (f"{program} login{option} {instance.host}",) if instance.asks_for_login else ()


def _by_path(text: str, instance: Instance) -> str:
    names = [each.name for each in instance.registries if each.name != DOCKER_HUB]
    return f"{text} by path: docker pull {instance.host}/{names[0] if names else 'ghcr.io'}/org/app"


def _yaml(text: str) -> str:
    """Return a key of a YAML mapping; one with a colon is quoted."""
    return json.dumps(text) if ":" in text else text


_RECIPES: Final[dict[ClientName, Callable[[Instance, Read], Recipe]]] = {
    ClientName.DOCKER: _docker,
    ClientName.CONTAINERD: _containerd,
    ClientName.PODMAN: _podman,
    ClientName.BUILDKIT: _buildkit,
    ClientName.K3S: _k3s,
    ClientName.CRIO: _crio,
    ClientName.KANIKO: _kaniko,
    ClientName.SKOPEO: _skopeo,
    ClientName.HELM: _helm,
}
