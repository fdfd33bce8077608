"""Webhooks in the shapes that the vendors document, and how each sender proves who it is.

Sources: docs.docker.com/docker-hub/repos/manage/webhooks, octokit/webhooks (payload-examples),
docs.quay.io/guides/notifications, goharbor.io "Configure Webhook Notifications",
distribution.github.io/distribution/about/notifications, docs.gitlab.com "Webhook events".
"""

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from typing import Any, NamedTuple

SECRET = "correct-horse-battery-staple"
WRONG = "wrong-horse-battery-staple"
DIGEST = "sha256:" + "5a" * 32


def dockerhub(repo: str, tag: str) -> dict[str, Any]:
    namespace, _, name = repo.rpartition("/")
    return {
        "callback_url": f"https://registry.hub.docker.com/u/{repo}/hook/2141b5bi5i5b02bec211i4eeih/",
        "push_data": {"pushed_at": 1417566161, "pusher": "trustedbuilder", "tag": tag},
        "repository": {
            "comment_count": 0,
            "date_created": 1417494799,
            "description": "",
            "is_official": False,
            "is_private": True,
            "name": name,
            "namespace": namespace,
            "owner": namespace,
            "repo_name": repo,
            "repo_url": f"https://registry.hub.docker.com/u/{repo}/",
            "star_count": 0,
            "status": "Active",
        },
    }


def github(repo: str, tag: str, event: str = "registry_package") -> dict[str, Any]:
    owner, _, name = repo.partition("/")
    return {
        "action": "published",
        event: {
            "id": 10696,
            "name": name,
            "namespace": owner,
            "ecosystem": "CONTAINER",
            "package_type": "CONTAINER",
            "html_url": f"https://github.com/{owner}/packages/10696",
            "owner": {"login": owner, "id": 21031067, "type": "User"},
            "package_version": {
                "id": 57755791,
                "version": DIGEST,
                "name": DIGEST,
                "manifest": "",
                "container_metadata": {
                    "tag": {"name": tag, "digest": DIGEST},
                    "labels": {"source": f"https://github.com/{repo}"},
                    "manifest": {"digest": DIGEST, "size": 1782},
                },
                "installation_command": f"docker pull ghcr.io/{repo}:{tag}",
                "package_url": f"ghcr.io/{repo}:{tag}",
            },
            "registry": {"name": "GitHub CONTAINER registry", "type": "CONTAINER"},
        },
        "repository": {"id": 185882436, "name": name, "full_name": repo, "private": True},
    }


def quay(repo: str, tag: str) -> dict[str, Any]:
    namespace, _, name = repo.partition("/")
    return {
        "name": name,
        "repository": repo,
        "namespace": namespace,
        "docker_url": f"quay.io/{repo}",
        "homepage": f"https://quay.io/repository/{repo}",
        "updated_tags": [tag],
    }


def _harbor_data(repo: str, tag: str) -> dict[str, Any]:
    namespace, _, name = repo.partition("/")
    resource = {
        "digest": DIGEST,
        "tag": tag,
        "resource_url": f"hub.harbor.com/{repo}:{tag}",
    }
    repository = {
        "date_created": 1586922308,
        "name": name,
        "namespace": namespace,
        "repo_full_name": repo,
        "repo_type": "private",
    }
    return {"resources": [resource], "repository": repository}


def harbor(repo: str, tag: str) -> dict[str, Any]:
    return {
        "type": "PUSH_ARTIFACT",
        "occur_at": 1586922308,
        "operator": "admin",
        "event_data": _harbor_data(repo, tag),
    }


def harbor_cloud_event(repo: str, tag: str) -> dict[str, Any]:
    return {
        "specversion": "1.0",
        "id": "66e18103-09c1-41f6-982f-37df223f3eeb",
        "requestid": "51c0b694-0168-4f3c-b0db-282565455d7b",
        "source": "/projects/2/webhook/policies/15",
        "type": "harbor.artifact.pushed",
        "datacontenttype": "application/json",
        "time": "2023-04-03T06:04:46Z",
        "data": _harbor_data(repo, tag),
        "operator": "harbor-jobservice",
    }


def distribution(
    repo: str, tag: str, action: str = "push", number: str = "320678d8-ca14-430f-8bb6-4ca139cd83f7"
) -> dict[str, Any]:
    return {
        "events": [
            {
                "id": number,
                "timestamp": "2016-03-09T14:44:26.402973972-08:00",
                "action": action,
                "target": {
                    "mediaType": "application/vnd.oci.image.manifest.v1+json",
                    "size": 708,
                    "digest": DIGEST,
                    "length": 708,
                    "repository": repo,
                    "url": f"http://192.168.100.227:5000/v2/{repo}/manifests/{DIGEST}",
                    "tag": tag,
                },
                "request": {
                    "id": "6df24a34-0959-4923-81ca-14f09767db19",
                    "addr": "192.168.64.11:42961",
                    "host": "192.168.100.227:5000",
                    "method": "PUT",
                    "useragent": "curl/7.38.0",
                },
                "actor": {},
                "source": {"addr": "xtal.local:5000", "instanceID": "a53db899-3b4b-4a62-a067"},
            }
        ]
    }


def gitlab_pipeline(repo: str, tag: str) -> dict[str, Any]:
    return {
        "object_kind": "pipeline",
        "object_attributes": {
            "id": 31,
            "ref": tag,
            "tag": True,
            "sha": "bcbb5ec396a2c0f828686f14fac9b80b780504f2",
            "status": "success",
        },
        "project": {"id": 1, "name": "Gitlab Test", "path_with_namespace": repo},
    }


def gitlab_tag_push(repo: str, tag: str) -> dict[str, Any]:
    return {
        "object_kind": "tag_push",
        "event_name": "tag_push",
        "before": "0" * 40,
        "after": "82b3d5ae55f7080f1e6022629cdb57bfae7cccc7",
        "ref": f"refs/tags/{tag}",
        "project": {"id": 1, "name": "Example", "path_with_namespace": repo},
    }


def gitlab_release(repo: str, tag: str) -> dict[str, Any]:
    return {
        "object_kind": "release",
        "tag": tag,
        "name": "v1.1",
        "action": "create",
        "project": {"id": 2, "name": "release-webhook-example", "path_with_namespace": repo},
    }


class Sent(NamedTuple):
    """One request of a sender."""

    headers: dict[str, str]
    token: str
    body: bytes


Prove = Callable[[bytes, str], Sent]
"""Makes a request of a body and a secret."""


def by_url(body: bytes, secret: str) -> Sent:
    return Sent({}, secret, body)


def by_authorization(body: bytes, secret: str) -> Sent:
    return Sent({"Authorization": f"Bearer {secret}"}, "", body)


def by_plain_authorization(body: bytes, secret: str) -> Sent:
    return Sent({"Authorization": secret}, "", body)


def by_gitlab_token(body: bytes, secret: str) -> Sent:
    return Sent({"X-Gitlab-Token": secret, "X-Gitlab-Event": "Pipeline Hook"}, "", body)


def by_github(body: bytes, secret: str, event: str = "registry_package", number: str = "1") -> Sent:
    code = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    headers = {
        "X-GitHub-Event": event,
        "X-GitHub-Delivery": number,
        "X-Hub-Signature-256": f"sha256={code}",
    }
    return Sent(headers, "", body)


def by_standard(body: bytes, secret: str, at: float, number: str = "msg_1") -> Sent:
    """Sign as Standard Webhooks specifies."""
    key = secret.encode()
    if secret.startswith("whsec_"):
        key = base64.b64decode(secret.removeprefix("whsec_"))
    time = str(int(at))
    code = hmac.new(key, f"{number}.{time}.".encode() + body, hashlib.sha256).digest()
    headers = {
        "webhook-id": number,
        "webhook-timestamp": time,
        "webhook-signature": "v1," + base64.b64encode(code).decode(),
    }
    return Sent(headers, "", body)


class Sender(NamedTuple):
    """A sender of one format."""

    format: str
    payload: Callable[[str, str], dict[str, Any]]
    prove: Prove

    def send(self, repo: str, tag: str, secret: str = SECRET) -> Sent:
        return self.prove(json.dumps(self.payload(repo, tag)).encode(), secret)


SENDERS = {
    "dockerhub": Sender("dockerhub", dockerhub, by_url),
    "github": Sender("github", github, by_github),
    "quay": Sender("quay", quay, by_url),
    "quay, by a header": Sender("quay", quay, by_authorization),
    "harbor": Sender("harbor", harbor, by_plain_authorization),
    "harbor, CloudEvents": Sender("harbor", harbor_cloud_event, by_authorization),
    "gitlab pipeline": Sender("gitlab", gitlab_pipeline, by_gitlab_token),
    "gitlab tag": Sender("gitlab", gitlab_tag_push, by_gitlab_token),
    "gitlab release": Sender("gitlab", gitlab_release, by_gitlab_token),
    "gitlab registry": Sender("gitlab", distribution, by_authorization),
    "distribution": Sender("distribution", distribution, by_authorization),
}
