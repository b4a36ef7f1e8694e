# sfrik with everything that the notebooks, tables and tests need.
#
#   docker build -t sfrik .
#   docker build -t sfrik --build-arg INDEX=https://download.pytorch.org/whl/cpu .    without CUDA
#   docker run --rm --gpus all -v "$PWD/runs:/sfrik/runs" sfrik make table1 VENV=
#   docker run --rm -p 8888:8888 sfrik make lab VENV= LAB="--ip=0.0.0.0 --no-browser"
FROM python:3.12-slim-bookworm
ARG INDEX
# make and git: for the Makefile, and for the commit that records name
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends git make \
    && rm -rf /var/lib/apt/lists/* \
    && git config --system --add safe.directory /sfrik
WORKDIR /sfrik
COPY . .
# hadolint ignore=DL3013
RUN python -m pip install --no-cache-dir ${INDEX:+--extra-index-url "$INDEX"} --editable '.[notebooks,dev]'
CMD ["make"]
