# One image for every part of DANE: API, runner, worker, migrations. compose.yaml says which.

FROM python:3.11.14-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/dane
WORKDIR /build
# Everything that the wheel is made of, and nothing else (.dockerignore).
COPY pyproject.toml requirements-run.lock README.md LICENSE ./
COPY dane_core dane_core
COPY dane_server dane_server
COPY workers workers
COPY migrations migrations
RUN /opt/dane/bin/pip install --require-hashes -r requirements-run.lock \
    && /opt/dane/bin/pip install --no-deps .

FROM python:3.11.14-slim-bookworm
# Log lines come out when they are written; nothing is written beside the code.
ENV PATH=/opt/dane/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
RUN useradd --system --uid 5500 --home-dir /data --shell /usr/sbin/nologin dane \
    && mkdir -p /data /etc/dane && chown dane: /data
COPY --from=build /opt/dane /opt/dane
# /etc/dane/config.yml is read if it is mounted; TEMP and OUT are in /data.
ENV DANE_HOME=/etc/dane DANE_DANE_SERVER__DATA_FOLDER=/data
VOLUME /data
WORKDIR /data
USER dane
# SIGTERM drains: a worker finishes what runs, a server what it was asked.
STOPSIGNAL SIGTERM
ENTRYPOINT ["dane"]
CMD ["--help"]
