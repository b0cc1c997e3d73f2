# `retinanet serve` on a CPU for a model that was exported to ONNX or OpenVINO, without torch: docs/how-to/docker.md
FROM python:3.12-slim-bookworm AS build
WORKDIR /source
RUN python -m venv --without-pip /opt/retinanet
COPY requirements-runner.txt ./
RUN python -m pip --python /opt/retinanet/bin/python install --no-cache-dir --require-hashes -r requirements-runner.txt
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN python -m pip --python /opt/retinanet/bin/python install --no-cache-dir --no-deps .

FROM python:3.12-slim-bookworm
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin retinanet
COPY --from=build /opt/retinanet /opt/retinanet
ENV PATH=/opt/retinanet/bin:$PATH PYTHONUNBUFFERED=1
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=4)"]
# All addresses of the container; which of the host lead there is said by `docker run --publish`.
ENTRYPOINT ["retinanet", "serve", "--host", "0.0.0.0"]
CMD ["/model"]
