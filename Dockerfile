# ANIT-DS in a container.
#
#   docker build -t anit-ds .
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/work" -v anit-cache:/home/anit/.cache anit-ds train my.yaml
#
# With NVIDIA's GPUs the base is CUDA's and torch comes with its CUDA wheels:
#
#   docker build -t anit-ds:cuda --build-arg BASE=nvidia/cuda:13.0.2-base-ubuntu24.04 --build-arg TORCH_INDEX=https://pypi.org/simple .
#   docker run --rm --gpus all --ipc=host ... anit-ds:cuda train my.yaml
#
# BASE is any Debian or Ubuntu with Python 3.11 or later.
ARG BASE=debian:bookworm-slim
FROM ${BASE}

# A C compiler and Python's headers: Triton and DeepSpeed compile at the first run.
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        ca-certificates g++ openssh-client python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1
RUN python3 -m venv /opt/venv
WORKDIR /opt/anit-ds
COPY constraints.txt ./
# Torch first and alone: the layer of gigabytes stays when the sources change.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install -c constraints.txt torch --index-url "$TORCH_INDEX"
COPY pyproject.toml README.md LICENSE ./
COPY anit_ds anit_ds
COPY kernels kernels
RUN pip install -c constraints.txt ".[serve]"
COPY launch launch
COPY ds_configs ds_configs
COPY examples examples

# Whoever --user names may write the home: models and data are cached there. Torch asks for a name.
RUN useradd --create-home anit && chmod a+rwx /home/anit
ENV HOME=/home/anit USER=anit
USER anit
WORKDIR /work
ENTRYPOINT ["anit"]
CMD ["--help"]
