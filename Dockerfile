# The quickstart in a container, with the versions of constraints.txt:
#
#     docker build -t flannel-pl . && mkdir -p runs
#     docker run --rm -v "$PWD/runs:/work/runs" flannel-pl   # the quickstart and its report
#     docker run --rm -v "$PWD/runs:/work/runs" flannel-pl flannel-pl status runs/quickstart
#
# What it writes is user 1000's unless --build-arg UID says otherwise. docs/install.md says what of this was tried.
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}

ARG UID=1000
RUN useradd --create-home --uid ${UID} flannel && install -d -o flannel /work /work/runs

COPY . /tmp/flannel-pl
RUN python -m pip install --no-cache-dir -c /tmp/flannel-pl/constraints.txt /tmp/flannel-pl && rm -r /tmp/flannel-pl

USER flannel
WORKDIR /work
CMD ["sh", "-c", "config=$(python -c 'from flannel_pl.shipped import shipped_configs; print(shipped_configs()[\"quickstart\"])') && flannel-pl fit --config \"$config\" && flannel-pl report runs/quickstart"]
