"""Credentials for Amazon ECR and ECR Public (``GetAuthorizationToken``), by botocore.

botocore finds AWS credentials: variables, profiles, IRSA, container and instance roles. The
registry's password is valid for 12 hours and all repositories that the role may read.
"""

import base64
import re
import time
from typing import Any, Final

from proxy.core.errors import CredentialsRejected
from proxy.settings.upstreams import AWSCredentials
from proxy.upstream.credentials import Credential
from proxy.upstream.credentials.cloud import call, load
from proxy.upstream.credentials.renewing import Issued

PUBLIC_HOSTS: Final = ("public.ecr.aws", "ecr-public.aws.com")
PUBLIC_REGION: Final = "us-east-1"
"""The only region with ``ecr-public:GetAuthorizationToken``."""

_HOST: Final = re.compile(r"\d{12}\.dkr[.-]ecr(?:-fips)?\.([a-z0-9][a-z0-9_-]*)\.[a-z0-9.-]+")
"""A private registry's host (amazon-ecr-credential-helper, ``ecr-login/api/client.go``)."""


class AWS:
    """The registry of ``host``, as the role of the settings."""

    def __init__(self, host: str, settings: AWSCredentials) -> None:
        self._settings = settings
        self._service = "ecr-public" if host in PUBLIC_HOSTS else "ecr"
        self._region = settings.region or region_of(host)

    async def fetch(self) -> Issued[Credential | None]:
        """Return a new password. Raises ``CredentialsRejected``."""
        return await call("AWS", self._fetch)

    def _fetch(self) -> Issued[Credential | None]:
        botocore, config = load("aws", "botocore.session"), load("aws", "botocore.config")
        session = botocore.Session(profile=self._settings.profile)
        options: dict[str, Any] = {
            "region_name": self._region,
            "config": config.Config(
                connect_timeout=3, read_timeout=8, retries={"total_max_attempts": 2}
            ),
        }
        if self._settings.role_arn is not None:
            assumed = session.create_client("sts", **options).assume_role(
                RoleArn=self._settings.role_arn, RoleSessionName="millpond"
            )["Credentials"]
            options |= {
                "aws_access_key_id": assumed["AccessKeyId"],
                "aws_secret_access_key": assumed["SecretAccessKey"],
                "aws_session_token": assumed["SessionToken"],
            }
        answer = session.create_client(self._service, **options).get_authorization_token()
        data = answer["authorizationData"]
        given = data[0] if isinstance(data, list) else data  # ECR Public gives one
        pair = base64.b64decode(given["authorizationToken"]).decode()
        username, _, password = pair.partition(":")
        if not password:
            raise CredentialsRejected("AWS returned an authorization token without a password")
        return Issued(Credential(username, password), given["expiresAt"].timestamp() - time.time())


def region_of(host: str) -> str | None:
    """Return the region of a registry, None if its name has none."""
    if host in PUBLIC_HOSTS:
        return PUBLIC_REGION
    match = _HOST.fullmatch(host)
    return None if match is None else match[1]
