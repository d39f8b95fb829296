# docker build -t vae_jax .                            CPU
# docker build -t vae_jax --build-arg JAX=cuda13 .     NVIDIA GPUs; docker run --gpus=all …
# docker build -t vae_jax --build-arg JAX=tpu .        Cloud TPUs; docker run --privileged --net=host …
#
# docker run --rm -v "$PWD:/work" -u "$(id -u):$(id -g)" vae_jax train --config=digits --workdir=runs/digits
ARG PYTHON=3.12
FROM python:${PYTHON}-slim

# '' (CPU), cuda13 or tpu: an extra of JAX, at the locked version.
ARG JAX=""

WORKDIR /opt/vae_jax
COPY requirements.lock ./
RUN pip install --no-cache-dir --no-deps -r requirements.lock \
    && if [ -n "$JAX" ]; then pip install --no-cache-dir -c requirements.lock "jax[$JAX]"; fi
COPY . .
RUN pip install --no-cache-dir --no-deps .

# Huge pages for a CPU's large temporaries, as `make` sets them; lines of a run appear at once.
ENV GLIBC_TUNABLES=glibc.malloc.hugetlb=1 PYTHONUNBUFFERED=1
WORKDIR /work
ENTRYPOINT ["vae-jax"]
CMD ["--help"]
