# One image for the whole suite; the command picks the service:
#   python -P -m services.state | services.auth | services.executor | services.trace
# The `holdfast` command line is on the PATH as well. Settings come from HOLDFAST_* variables: docs/operations.md.

FROM python:3.13-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/holdfast
WORKDIR /src
# The dependencies have a layer of their own: a change of the code does not install them again.
COPY pyproject.toml ./
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
print('\n'.join(p['dependencies'] + p['optional-dependencies']['server']))" > requirements.txt \
 && /opt/holdfast/bin/pip install --requirement requirements.txt
COPY LICENSE README.md ./
COPY holdfast ./holdfast
COPY services ./services
# The image runs the wheel that users get. Its services lie in holdfast/_suite; /app leads there.
RUN /opt/holdfast/bin/pip install --no-deps . \
 && ln -s "$(/opt/holdfast/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/holdfast/_suite" /opt/holdfast/suite \
 && /opt/holdfast/bin/python -m compileall -q /opt/holdfast/lib/*/site-packages/holdfast \
 && /opt/holdfast/bin/pip uninstall --yes pip

FROM python:3.13-slim
RUN groupadd --gid 10001 holdfast \
 && useradd --uid 10001 --gid 10001 --home-dir /var/lib/holdfast --create-home --shell /usr/sbin/nologin holdfast
COPY --from=build /opt/holdfast /opt/holdfast
# -P keeps the working directory off the import path, so the services' folder is named here.
ENV PATH=/opt/holdfast/bin:$PATH \
    PYTHONPATH=/opt/holdfast/suite \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOLDFAST_LOG_FORMAT=json
USER 10001:10001
WORKDIR /var/lib/holdfast
STOPSIGNAL SIGTERM
# Asks grpc.health.v1 of the service at HOLDFAST_LISTEN.
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=3 \
  CMD ["python", "-P", "-m", "services.shared.healthcheck"]
CMD ["holdfast", "--help"]
