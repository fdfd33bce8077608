# docker build --tag millpond .
#
# BASE is any image with Python 3.11 or newer, its venv module, and Debian's user tools. A package
# index other than PyPI: --build-arg PIP_INDEX_URL=…; it leaves no trace in the final image.
ARG BASE=python:3.13-slim

FROM ${BASE} AS build
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_TRUSTED_HOST
ARG PIP_CERT
RUN python3 -m venv /opt/millpond
COPY pyproject.toml constraints.txt README.md LICENSE /src/
COPY proxy /src/proxy
RUN /opt/millpond/bin/pip install --disable-pip-version-check --no-cache-dir \
      --constraint /src/constraints.txt '/src[aws,azure,bucket,fleet,google,tracing]' \
 && /opt/millpond/bin/pip uninstall --yes --quiet pip

FROM ${BASE}
LABEL org.opencontainers.image.title="Millpond" \
      org.opencontainers.image.description="A pull-through caching proxy registry for container images" \
      org.opencontainers.image.licenses="Apache-2.0"
# A numeric uid, because Kubernetes' runAsNonRoot rejects user names.
RUN groupadd --gid 10001 millpond \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/millpond \
      --shell /usr/sbin/nologin millpond \
 && install --directory --owner 10001 --group 10001 --mode 0700 /var/lib/millpond
COPY --from=build /opt/millpond /opt/millpond
COPY deploy/healthcheck.py /opt/millpond/healthcheck.py
ENV PATH=/opt/millpond/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    MILLPOND_LISTEN=0.0.0.0:5000 \
    MILLPOND_STORAGE__PATH=/var/lib/millpond
USER 10001:10001
WORKDIR /var/lib/millpond
VOLUME /var/lib/millpond
EXPOSE 5000
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s --retries=3 \
  CMD ["/opt/millpond/bin/python", "-I", "/opt/millpond/healthcheck.py"]
ENTRYPOINT ["/opt/millpond/bin/millpond"]
CMD ["serve"]
